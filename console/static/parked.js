// Transactions that were put aside: why, what they change, and trying them again.
import { get, post } from "./api.js";
import { ask, button, failure, h, plural, refill, say, shown, table, time } from "./dom.js";

function reason(p) {
	const parts = [];
	if (p.message) parts.push(p.message + (p.sqlstate ? " (" + p.sqlstate + ")" : ""));
	if (p.depends_on?.length && !p.sqlstate) parts.push("depends on parked " + p.depends_on.join(", "));
	if (p.request) parts.push(p.request + " is asked for");
	return parts.join("; ") || "–";
}

// told says what became of a request, in one sentence for all of it.
function told(outcome, done) {
	if (!outcome.running) return "No bridge runs here; it is done when it starts.";
	const parts = [];
	if (outcome.done.length) parts.push(outcome.done.join(", ") + " " + done + ".");
	for (const p of outcome.left) parts.push(p.origin + ":" + p.seq + " is still parked: " + reason(p) + ".");
	return parts.join(" ") || "Nothing is parked.";
}

async function retry(asked, again) {
	const outcome = await post("parked/retry", asked);
	await again();
	const text = told(outcome, "applied");
	if (outcome.left.length) throw new Error(text);
	say(text);
}

async function discard(name, again) {
	const form = await ask({ title: "Give up " + name + " for good?", action: "Discard",
		text: "Its changes go into the history of conflicts, and those that depended on it are tried. This node differs from the others in its rows, until they are written again." });
	if (!form) return;
	const outcome = await post("parked/discard", { name });
	await again();
	say(told(outcome, "not parked any more"));
}

const acts = (name, operator, again) => (operator ? h("span", { class: "buttons" },
	button("Retry", () => retry({ name }, again), { "aria-label": "Retry " + name }), " ",
	button("Discard…", () => discard(name, again), { class: "danger", "aria-label": "Discard " + name })) : "–");

export async function parked(into, { operator }) {
	const list = h("div", {});
	into.append(h("h1", {}, "Parked transactions"),
		h("p", {}, "This server refuses them for what they hold. Mend the cause here, such as a constraint that other nodes lack, and try them again."), list);
	const again = async () => {
		const all = await get("parked");
		if (!all.length) {
			refill(list, h("p", {}, "Nothing is parked."));
			return;
		}
		refill(list, table(plural(all.length, "transaction, the oldest first", "transactions, the oldest first"),
			["Transaction", "Parked", "Table", "Key", "Reason", "Tries", "Act"],
			all.map((p) => [h("a", { href: "#/parked/" + encodeURIComponent(p.name) }, p.name), time(p.at), p.table ?? "–", p.key || "–", reason(p), p.attempts,
				acts(p.name, operator, again)]), { id: "parked" }),
		operator ? h("p", { class: "buttons" }, button("Retry all", () => retry({ all: true }, again))) : "");
	};
	await again();
}

export async function parkedChanges(into, { operator }, name) {
	const body = h("div", {});
	into.append(h("h1", {}, "Parked transaction " + name), h("p", {}, h("a", { href: "#/parked" }, "All parked transactions")), body);
	const again = async () => {
		let p;
		try {
			p = await get("parked/changes", { name });
		} catch (error) {
			refill(body, error.status === 404 ? h("p", {}, "It is not parked any more.") : failure(error));
			return;
		}
		refill(body, h("p", {}, "Written at " + time(p.stamp) + ", parked at " + time(p.at) + ". " + reason(p)), acts(p.name, operator, again),
			...p.rows.map((change, i) => changeTable(change, i + 1)),
			p.changes > p.rows.length ? h("p", {}, "And " + plural(p.changes - p.rows.length, "more change", "more changes") + "; pgbridge parked show has them.") : "");
	};
	await again();
}

function changeTable(change, n) {
	return table(n + ". " + change.kind + " " + change.table + (change.unread ? " (as it came: " + change.unread + ")" : ""), ["Column", "Before", "After"],
		change.columns.map((c) => [c.name, c.local === undefined ? "–" : shown(c.local), c.remote === undefined ? "–" : shown(c.remote)]));
}
