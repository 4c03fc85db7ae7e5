// What all views are built with. Text goes into the page as text only, never as markup: rows and errors come from anywhere.

const svgSpace = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
	for (const [name, value] of Object.entries(attributes ?? {})) {
		if (value === undefined || value === null || value === false) continue;
		if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
		else element.setAttribute(name, value === true ? "" : value);
	}
	element.append(...children.flat(Infinity).filter((child) => child !== undefined && child !== null && child !== false));
	return element;
}

// h makes an element with attributes and children; attributes that begin with "on" are listeners.
export function h(tag, attributes, ...children) {
	return fill(document.createElement(tag), attributes, children);
}

// s makes an element of SVG.
export function s(tag, attributes, ...children) {
	return fill(document.createElementNS(svgSpace, tag), attributes, children);
}

// table makes a table that a phone shows as cards; columns are its headings, rows lists of cells or of [cell, attributes].
export function table(caption, columns, rows, attributes) {
	const cells = (row) => row.map((cell, i) => h("td", { "data-label": columns[i] }, h("span", {}, cell)));
	return h("div", { class: "wide" }, h("table", attributes,
		h("caption", {}, caption),
		h("thead", {}, h("tr", {}, columns.map((column) => h("th", { scope: "col" }, column)))),
		h("tbody", {}, rows.map((row) => h("tr", {}, cells(row))))));
}

// say tells those who look, and those who listen, what was done.
export function say(text) {
	const said = document.getElementById("said");
	said.textContent = text;
	clearTimeout(say.timer);
	say.timer = setTimeout(() => { said.textContent = ""; }, 8000);
}

// ask opens a dialog and gives the form's fields if the person agrees, else null. The field that is first gets the focus.
export function ask({ title, text, action, fields = [] }) {
	const dialog = document.getElementById("ask");
	document.getElementById("ask-title").textContent = title;
	document.getElementById("ask-text").textContent = text;
	document.getElementById("ask-yes").textContent = action;
	document.getElementById("ask-fields").replaceChildren(...fields);
	document.getElementById("ask-no").onclick = () => dialog.close("no"); // it is no button of the form, which Enter in a field would press
	dialog.returnValue = "no";
	dialog.showModal();
	return new Promise((resolve) => {
		dialog.addEventListener("close", () => {
			resolve(dialog.returnValue === "yes" ? new FormData(dialog.querySelector("form")) : null);
		}, { once: true });
	});
}

// failure shows an error in the place of what could not be had.
export function failure(error) {
	return h("p", { class: "error", role: "alert" }, error.message);
}

// setBusy switches a button off or on. It keeps the focus meanwhile, which it would lose if it were disabled.
export function setBusy(button, yes) {
	button.setAttribute("aria-disabled", yes);
}

export const busy = (button) => button.getAttribute("aria-disabled") === "true";

// button makes a button that is off while what it does is under way, and shows what goes wrong.
export function button(text, act, attributes) {
	const made = h("button", { type: "button", ...attributes, onclick: async () => {
		if (busy(made)) return;
		setBusy(made, true);
		try {
			await act();
		} catch (error) {
			if (error.status !== 401) complain(error);
		}
		setBusy(made, false);
	} }, text);
	return made;
}

// refill replaces what an element shows. A focus in there goes to the button that is called the same, or else to the heading above.
export function refill(element, ...children) {
	const name = (of) => of.getAttribute("aria-label") || of.textContent;
	const had = element.contains(document.activeElement) ? name(document.activeElement) : null;
	element.replaceChildren(...children);
	if (had === null) return;
	const again = [...element.querySelectorAll("button")].find((other) => name(other) === had);
	(again ?? heading(element.closest("section:has(h2)")?.querySelector("h2") ?? document.querySelector("#view h1"))).focus();
}

// heading lets a heading have the focus.
export function heading(title) {
	title.tabIndex = -1;
	return title;
}

// complain shows an error until the next one, or until it is dismissed.
export function complain(error) {
	document.querySelector(".complaint")?.remove();
	const box = h("div", { class: "complaint error", role: "alert" }, error.message, " ",
		h("button", { type: "button", onclick: () => box.remove() }, "Dismiss"));
	document.getElementById("view").before(box);
	box.scrollIntoView({ block: "nearest" });
}

export const count = (n) => Number(n ?? 0).toLocaleString("en");

export const plural = (n, one, many) => count(n) + " " + (n === 1 ? one : many);

export function seconds(x) {
	if (!x) return "0 s";
	if (x < 0.001) return "< 1 ms";
	if (x < 1) return Math.round(x * 1000) + " ms";
	if (x < 120) return (x < 10 ? x.toFixed(1) : Math.round(x)) + " s";
	if (x < 7200) return Math.round(x / 60) + " min";
	if (x < 172800) return Math.round(x / 3600) + " h";
	return Math.round(x / 86400) + " d";
}

export function bytes(n) {
	for (const unit of ["B", "KiB", "MiB", "GiB"]) {
		if (n < 1024 || unit === "GiB") return (n < 10 && unit !== "B" ? n.toFixed(1) : Math.round(n)) + " " + unit;
		n /= 1024;
	}
}

export const rate = (x) => (x === undefined ? "–" : (x > 0 && x < 10 ? x.toFixed(1) : Math.round(x)) + " tx/s");

// time writes a moment as the logs do, in UTC.
export const time = (text) => (text ? new Date(text).toISOString().replace("T", " ") : "–");

// exact writes a stamp with all of its digits: versions may be microseconds apart.
export const exact = (text) => text.replace("T", " ");

// shown writes a value of a row, which comes as JSON's text, so that no digit is lost.
export function shown(text) {
	if (text === undefined) return h("span", { class: "none" }, "(not sent)");
	return text === "null" ? h("span", { class: "none" }, "NULL") : text;
}
