// The page: who is signed in, and which section is shown.
import { get, signIn, signOut } from "./api.js";
import { complain, failure, h, heading } from "./dom.js";
import { begin, end, watch } from "./watch.js";
import { overview } from "./overview.js";
import { conflicts, conflict } from "./conflicts.js";
import { parked, parkedChanges } from "./parked.js";
import { verify } from "./verify.js";
import { settings } from "./settings.js";

const byId = (id) => document.getElementById(id);

// A view fills an element and may return what is to be called when it is left.
const views = [
	[/^\/?$/, overview],
	[/^\/conflicts$/, conflicts],
	[/^\/conflicts\/(\d+)$/, conflict],
	[/^\/parked$/, parked],
	[/^\/parked\/(.+)$/, parkedChanges],
	[/^\/verify$/, verify],
	[/^\/settings$/, settings],
];

let me = null; // who is signed in
let leave = null;

async function route(event) {
	leave?.();
	leave = null;
	if (!me) return;
	const [coded, query] = location.hash.slice(1).split("?");
	const path = decodeURIComponent(coded);
	const [pattern, view] = views.find(([pattern]) => pattern.test(path)) ?? [/^/, lost];
	for (const link of byId("nav").querySelectorAll("a")) {
		const to = link.hash.slice(1);
		const here = to === "/" ? path === "" || path === "/" : path === to || path.startsWith(to + "/");
		if (here) link.setAttribute("aria-current", "page");
		else link.removeAttribute("aria-current");
	}
	document.querySelector(".complaint")?.remove();
	const into = h("div", {});
	byId("view").replaceChildren(into);
	const shown = { me, query: new URLSearchParams(query), operator: me.role === "operator" };
	try {
		const left = await view(into, shown, ...path.match(pattern).slice(1));
		if (into.isConnected) leave = left;
		else left?.();
	} catch (error) {
		if (error.status !== 401) into.append(failure(error));
	}
	const title = into.querySelector("h1");
	document.title = (title ? title.textContent + " – " : "") + me.node + " – pgbridge";
	if (event && title && into.isConnected) { // somebody went there: read it from its beginning
		heading(title).focus();
	}
}

function lost(into) {
	into.append(h("h1", {}, "There is no such section"), h("p", {}, h("a", { href: "#/" }, "Go to the overview")));
}

function enter(who, event) {
	me = who;
	byId("sign-in").hidden = true;
	for (const id of ["nav", "who"]) byId(id).hidden = false;
	byId("where").textContent = who.cluster + " / " + who.node;
	byId("role").textContent = who.role;
	begin();
	route(event);
}

function leaveAll() {
	me = null;
	leave?.();
	leave = null;
	end();
	for (const id of ["nav", "who", "lost"]) byId(id).hidden = true;
	byId("view").replaceChildren();
	document.querySelector(".complaint")?.remove();
	if (byId("ask").open) byId("ask").close("no");
	document.title = "Sign in – pgbridge";
	byId("sign-in").hidden = false;
	byId("token").focus();
}

byId("sign-in").addEventListener("submit", async (event) => {
	event.preventDefault();
	const field = byId("token"), error = byId("sign-in-error");
	error.textContent = "";
	try {
		enter(await signIn(field.value.trim()), event);
	} catch (refused) {
		error.textContent = refused.message;
		field.select();
		field.focus();
		return;
	}
	field.value = "";
});

byId("sign-out").addEventListener("click", async () => {
	try {
		await signOut();
		leaveAll();
	} catch (error) {
		complain(error);
	}
});

document.addEventListener("signed-out", () => { if (me) leaveAll(); });

document.addEventListener("lost", ({ detail }) => {
	const box = byId("lost");
	const text = detail && detail.status !== 401 ? detail.message : "";
	if (box.textContent !== text) box.textContent = text; // said once, not each second
	box.hidden = text === "";
});

watch(({ status }) => {
	const n = status.report.links.reduce((sum, link) => sum + link.parked, 0);
	byId("parked-count").textContent = n;
	byId("parked-count").hidden = n === 0;
});

addEventListener("hashchange", route);

document.querySelector(".skip").addEventListener("click", (event) => {
	event.preventDefault(); // or the address would name no section any more
	byId("main").focus();
});

try {
	enter(await get("session"));
} catch (error) {
	leaveAll();
	if (error.status !== 401) byId("sign-in-error").textContent = error.message;
}
