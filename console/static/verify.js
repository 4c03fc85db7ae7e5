// Comparing the rows of nodes. A comparison goes on while other sections are looked at, and ends with the page.
import { lines } from "./api.js";
import { ask, button, busy, complain, count, h, plural, say, seconds, setBusy, table, time } from "./dom.js";
import { watched, watch } from "./watch.js";

// run is the last comparison of this page.
const run = { stop: null, progress: null, report: null, error: "", changed: () => {} };

document.addEventListener("signed-out", () => {
	run.stop?.abort();
	Object.assign(run, { progress: null, report: null, error: "" });
});

async function begin(asked) {
	run.stop = new AbortController();
	Object.assign(run, { progress: {}, report: null, error: "" });
	run.changed();
	try {
		await lines("verify", asked, run.stop.signal, (line) => {
			if (line.progress) run.progress = line.progress;
			if (line.report) run.report = line.report;
			if (line.error) run.error = line.error;
			run.changed();
		});
		if (!run.report && !run.error) run.error = "The comparison ended before its report; the log of the bridge may say why.";
	} catch (error) {
		run.error = error.name === "AbortError" ? "The comparison was stopped." : error.message;
	}
	run.stop = null;
	run.changed();
	if (run.report) say("Compared: " + verdict(run.report));
}

const verdict = (r) => plural(r.rows, "row", "rows") + " on " + r.nodes.join(", ") + ", " + (r.differences ? plural(r.differences, "differs", "differ") + (r.mended ? ", " + r.mended + " mended" : "") : "none differs");

export function verify(into, { operator }) {
	const others = h("fieldset", {}, h("legend", {}, "With")), from = h("select", { id: "verify-from", name: "from" });
	const start = h("button", { type: "submit" }, "Compare");
	const state = h("div", {}), result = h("div", {});
	const form = h("form", { onsubmit: async (event) => {
		event.preventDefault();
		if (busy(start)) return;
		const data = new FormData(form), nodes = data.getAll("node");
		const asked = { table: data.get("table"), nodes: nodes.length === others.querySelectorAll("input").length ? [] : nodes, repair: data.get("repair") === "on", from: data.get("repair") ? data.get("from") : "" };
		if (!nodes.length) return complain(new Error("Choose a node to compare with."));
		if (asked.repair && !await ask({ title: "Compare, and mend what differs?", action: "Compare and mend",
			text: "Rows that differ are written again by ordinary writes, as " + (asked.from ? "node " + asked.from + " has them" : "their later version is") + ". What was not right goes into the history of conflicts." })) return;
		begin(asked);
	} },
	h("p", {}, h("label", { for: "verify-table" }, "Tables"), h("input", { id: "verify-table", name: "table", placeholder: "all, or a pattern such as app.*" })),
	others,
	h("p", {}, h("label", { class: "check" }, h("input", { type: "checkbox", name: "repair" }), " Mend rows that differ"), " ",
		h("label", { for: "verify-from" }, "Right is"), from),
	h("p", { class: "buttons" }, start));
	into.append(h("h1", {}, "Verify"), h("p", {}, "Compares the rows of nodes while they are written. What is on its way is waited for, so that a row that is told of differs for good."),
		operator ? form : h("p", {}, "Operators may start a comparison; you are signed in as a viewer."), state, result);

	const choose = ({ status }) => { // once the nodes are known
		if (others.querySelector("input")) return;
		const names = status.nodes.map((x) => x.node);
		others.append(...names.filter((node) => node !== status.report.node).map((node) => h("label", { class: "check" }, h("input", { type: "checkbox", name: "node", value: node, checked: true }), " " + node)));
		from.replaceChildren(h("option", { value: "" }, "the later version"), ...names.map((node) => h("option", { value: node }, "node " + node)));
	};
	const show = () => {
		setBusy(start, run.stop !== null);
		const p = run.progress;
		if (run.stop && !state.querySelector("progress")) {
			state.replaceChildren(h("progress", { "aria-label": "Comparison" }), h("p", { role: "status" }), button("Stop", () => run.stop?.abort()));
		}
		if (run.stop) state.querySelector("p").textContent = p.table ? p.table + ": " + plural(p.rows, "row", "rows") + ", " + p.doing : "The comparison begins.";
		else state.replaceChildren(...(run.error ? [h("p", { class: "error", role: "alert" }, run.error)] : []));
		result.replaceChildren(...(run.report ? reportOf(run.report) : []));
	};
	run.changed = show;
	const stopWatching = watch(choose);
	show();
	if (watched.status?.report.compared && !run.report && !run.stop) {
		const c = watched.status.report.compared;
		result.append(h("p", {}, c.waiting || "The last comparison of all nodes and tables began at " + time(c.at) + ": " + plural(c.rows, "row", "rows") + ", " + count(c.differences) + " differ."));
	}
	return () => {
		run.changed = () => {};
		stopWatching();
	};
}

function reportOf(r) {
	const parts = [h("h2", {}, "Result"), h("p", { id: "verdict", class: r.differences > r.mended ? "bad" : "good" }, (r.differences > r.mended ? "✕ " : "✓ ") + verdict(r) + ", in " + seconds(r.seconds) + "."),
		table("Tables", ["Table", "Rows", "Looked at", "Differ", "Mended", "Time"],
			r.tables.map((t) => [t.table, count(t.rows), count(t.looked), count(t.differences), count(t.mended), seconds(t.seconds)]))];
	if (r.partial) parts.push(h("p", {}, "It ended at so many differences as are remembered; there may be more."));
	parts.push(...r.found.map(difference));
	if (r.differences > r.found.length) parts.push(h("p", {}, "And " + plural(r.differences - r.found.length, "more row", "more rows") + "; pgbridge verify --limit shows them."));
	for (const [title, rows] of [["Rows that differ for a reason that the nodes know of", r.explained], ["Rows that changed each time they were looked at", r.unsettled]]) {
		if (rows.length) parts.push(table(title, ["Table", "Key", "Reason"], rows.map((x) => [x.table, x.key, x.reason])));
	}
	if (r.skipped.length) parts.push(table("Not compared", ["Table", "Reason"], r.skipped.map((x) => [x.table, x.reason])));
	return parts;
}

function difference(d) {
	const names = [...new Set(d.nodes.flatMap((node) => Object.keys(node.values ?? {})))];
	const head = (node) => node.node + (node.node === d.right ? ", right" : "");
	const value = (node, name) => (node.found ? node.values?.[name] ?? h("span", { class: "none" }, "NULL") : h("span", { class: "none" }, "(no row)"));
	const made = table(d.table + ", row " + d.key + (d.mended ? ": mended" : d.refused ? ": not mended: " + d.refused : ""), ["Column", ...d.nodes.map(head)],
		[["(version)", ...d.nodes.map((node) => (node.found ? node.version : "–"))], ...names.map((name) => [d.columns.includes(name) ? name + " ≠" : name, ...d.nodes.map((node) => value(node, name))])]);
	made.querySelectorAll("tbody tr").forEach((row, i) => { if (i > 0 && d.columns.includes(names[i - 1])) row.className = "differing"; });
	return made;
}
