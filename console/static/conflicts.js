// The history of conflicts: a list, and one conflict with both versions side by side.
import { get, post } from "./api.js";
import { ask, button, exact, h, plural, refill, say, seconds, shown, table, time } from "./dom.js";

const columns = ["ID", "Time", "Table", "Key", "Kind", "Won", "Lost", "Margin", "Undone"];

function rowOf(c) {
	return [h("a", { href: "#/conflicts/" + c.id, "aria-label": "Conflict " + c.id }, c.id), time(c.at), c.table, c.key || "–", c.kind, c.winner, c.loser,
		seconds(c.margin_seconds) + (c.close ? ", close" : ""), c.undone_at ? time(c.undone_at) : "–"];
}

export async function conflicts(into, { query }) {
	const filter = { table: query.get("table") ?? "", kind: query.get("kind") ?? "", origin: query.get("origin") ?? "" };
	into.append(h("h1", {}, "Conflicts"));
	const page = await get("conflicts", filter);
	const field = (name, label, input) => h("p", {}, h("label", { for: "filter-" + name }, label), input);
	into.append(h("form", { class: "row", onsubmit: (event) => {
		event.preventDefault();
		const asked = new URLSearchParams([...new FormData(event.target)].filter(([, value]) => value));
		location.hash = "#/conflicts" + (asked.size ? "?" + asked : "");
	} },
	field("table", "Table", h("input", { id: "filter-table", name: "table", value: filter.table, placeholder: "app.*" })),
	field("kind", "Kind", h("select", { id: "filter-kind", name: "kind" }, h("option", { value: "" }, "all"),
		page.kinds.map((kind) => h("option", { value: kind, selected: kind === filter.kind }, kind)))),
	field("origin", "With a write of", h("input", { id: "filter-origin", name: "origin", value: filter.origin, placeholder: "any node" })),
	h("button", { type: "submit" }, "Show")));
	if (!page.conflicts.length) {
		into.append(h("p", {}, Object.values(filter).some(Boolean) ? "The history of this node has no such conflict." : "The history of this node has no conflict."));
		return;
	}
	const made = table("Conflicts that this node has decided, the newest first", columns, page.conflicts.map(rowOf), { id: "conflicts" });
	into.append(made);
	let last = page;
	const more = button("Show older ones", async () => {
		last = await get("conflicts", { ...filter, before: last.conflicts.at(-1).id });
		const rows = table("", columns, last.conflicts.map(rowOf)).querySelectorAll("tbody tr");
		made.querySelector("tbody").append(...rows);
		rows[0]?.querySelector("a").focus();
		more.hidden = !last.more;
		say(plural(last.conflicts.length, "older conflict", "older conflicts") + " shown.");
	});
	more.hidden = !page.more;
	into.append(more);
}

// sides gives the head of one version's column: whose write it is, when, and what became of it.
function sides(c) {
	const remoteWon = c.outcome === "remote wins";
	return { local: c.local.origin + ", was here, " + (remoteWon ? "lost" : "won"), remote: c.remote.origin + ", came, " + (remoteWon ? "won" : "lost") };
}

export async function conflict(into, { operator }, id) {
	const c = await get("conflicts/" + id);
	const head = sides(c);
	const mark = (differs) => (differs ? h("strong", { class: "differs" }, "≠ ", h("span", { class: "unseen" }, "differs")) : "");
	const value = (row, text) => (row ? shown(text) : h("span", { class: "none" }, "(deleted)"));
	const parts = [h("h1", {}, "Conflict " + c.id), h("p", {}, h("a", { href: "#/conflicts" }, "All conflicts")),
		h("p", {}, c.kind + " in table " + c.table + ", row " + (c.key || "of unknown key") + ", decided here at " + time(c.at) + ". " + c.winner + " won by " + seconds(c.margin_seconds) +
			(c.close ? ", which is less than clocks can be trusted" : "") + "."),
		h("p", { id: "undone" }, c.undone_at ? "Undone at " + time(c.undone_at) + " by " + c.undone_by + "." : "Not undone.")];
	if (c.not_recorded) parts.push(h("p", { class: "error" }, "The rows were not recorded: " + c.not_recorded));
	const rows = [["(stamp)", "", exact(c.local.stamp), exact(c.remote.stamp)],
		...c.columns.map((column) => [column.name, mark(column.differs), value(c.local_row, column.local), value(c.remote_row, column.remote)])];
	const made = table("Both versions of the row", ["Column", "Differs", head.local, head.remote], rows, { id: "versions" });
	made.querySelectorAll("tbody tr").forEach((row, i) => { if (i > 0 && c.columns[i - 1].differs) row.className = "differing"; });
	parts.push(made);
	if (operator) parts.push(h("p", { class: "buttons" }, button("Undo…", async () => {
		const form = await ask({ title: "Undo conflict " + c.id + "?", action: "Undo",
			text: "The version of " + c.loser + " is written back by a new transaction of this node, which goes to all others. It is refused if the row is not what won any more.",
			fields: [h("label", { class: "check" }, h("input", { type: "checkbox", name: "force" }), " Write it whatever is there now")] });
		if (!form) return;
		await post("conflicts/" + c.id + "/undo", { force: form.get("force") === "on" });
		await conflict(into, { operator }, id);
		say("Conflict " + c.id + " is undone.");
	}, { class: "danger" })));
	refill(into, ...parts);
}
