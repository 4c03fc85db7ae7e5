// What goes on now: the cluster, alarms, nodes, lag, and what is held back.
import { post } from "./api.js";
import { ask, button, bytes, count, h, plural, rate, refill, say, seconds, table, time } from "./dom.js";
import { chart } from "./chart.js";
import { flows, nodeOf, picture, stateOf, stateWord } from "./topology.js";
import { span, watch } from "./watch.js";

// redraw fills an element when what it shows is not the same any more, so that a selection stays where it is.
function redraw(element, key, make) {
	const text = JSON.stringify(key);
	if (element.shows === text) return;
	element.shows = text;
	refill(element, ...[make()].flat());
}

export function overview(into, { operator }) {
	const verdict = h("p", { class: "verdict", role: "status" }), facts = h("dl", { class: "facts" });
	const alarms = h("div", {}), drawing = h("div", {}), nodes = h("div", {}), links = h("div", {});
	const lag = h("div", {}), flow = h("div", {}), held = h("div", {});
	into.append(h("h1", {}, "Overview"), verdict, alarms,
		h("section", { "aria-labelledby": "topology-title" }, h("h2", { id: "topology-title" }, "Topology"), drawing),
		h("section", {}, nodes), h("section", {}, links),
		h("section", { class: "charts", "aria-label": "Charts" }, lag, flow),
		h("section", { "aria-labelledby": "held-title" }, h("h2", { id: "held-title" }, "Held back"), held, operator && holdForm()),
		h("section", { "aria-labelledby": "facts-title" }, h("h2", { id: "facts-title" }, "This node"), facts));
	const draw = picture(drawing);
	const drawLag = chart(lag, { title: "Lag", write: seconds, least: 0.1, span });
	const drawFlow = chart(flow, { title: "Transactions", write: rate, least: 10, span });
	return watch((watched) => {
		const { status, samples } = watched, { report } = status;
		redraw(verdict, report.verdict, () => [h("strong", { class: report.well ? "good" : "bad" }, report.well ? "✓ " : "✕ "), "Node " + report.node + ": " + report.verdict]);
		redraw(alarms, report.alarms, () => alarmList(report.alarms));
		draw(watched);
		redraw(nodes, nodeRows(watched), () => table("Nodes", nodeColumns, nodeRows(watched)));
		redraw(links, linkRows(watched), () => table("Links", linkColumns, linkRows(watched)));
		const series = (of) => (origin) => ({ name: origin, points: samples.filter((x) => x[of][origin] !== undefined).map((x) => [x.at, x[of][origin]]) });
		const origins = report.links.map((link) => link.origin);
		drawLag(origins.map(series("lags")));
		drawFlow([report.node, ...origins].map(series("rates")));
		redraw(held, [status.paused, report.links.map((link) => link.origin)], () => holds(status, operator));
		redraw(facts, factsOf(report), () => factsOf(report).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
	}, { others: true });
}

function alarmList(alarms) {
	if (!alarms.length) return [];
	return h("section", { "aria-labelledby": "alarms-title" }, h("h2", { id: "alarms-title" }, plural(alarms.length, "alarm", "alarms")),
		h("ul", { class: "alarms" }, alarms.map((alarm) => h("li", { class: alarm.severity },
			h("strong", {}, (alarm.severity === "error" ? "✕ " : "! ") + alarm.code), " ", alarm.text, h("br"), h("span", { class: "mend" }, "Mend: " + alarm.mend)))));
}

const nodeColumns = ["Node", "How it is", "Lacks of this node", "Its writes here", "Queued here", "Lag here", "Conflicts here", "Parked here"];

function nodeRows(watched) {
	const { status, rates } = watched, { report } = status;
	return status.nodes.map(({ node, role }) => {
		const own = node === report.node, state = stateOf(node, watched);
		const there = report.nodes.find((x) => x.node === node), here = report.links.filter((link) => nodeOf(link.origin) === node);
		const sum = (of) => here.reduce((total, link) => total + of(link), 0);
		const name = node + (own ? " (this node)" : "") + (role ? " (" + role + ")" : "");
		if (own) return [name, state.text, "–", rate(rates[report.node]), "–", "–", "–", "–"];
		return [name, state.text, lacks(there), here.length ? rate(sum((link) => rates[link.origin] ?? 0)) : "–", count(sum((link) => link.queued)),
			seconds(Math.max(0, ...here.map((link) => link.lag_seconds))), count(sum((link) => link.conflicts)), count(sum((link) => link.parked))];
	});
}

function lacks(node) {
	if (!node) return "–";
	if (node.unknown) return "not known yet";
	return node.transactions ? plural(node.transactions, "transaction", "transactions") + ", " + seconds(node.seconds) : "nothing";
}

const linkColumns = ["From", "To", "State", "Flow", "Lag", "Queued"];

function linkRows(watched) {
	return flows(watched).map((way) => [way.from, way.to, stateWord(way.state) + (way.waiting ? ": " + way.waiting : ""), rate(way.rate),
		way.lag === undefined ? "–" : seconds(way.lag), way.state === "unknown" ? "–" : count(way.queued)]);
}

// holds lists what is held back, and lets operators hold back or let go a node.
function holds({ paused, report }, operator) {
	const what = (pause) => (pause.origin ? "node " + pause.origin : "table " + pause.table);
	const rows = paused.map((pause) => [what(pause), time(pause.since), pause.reason || "–",
		operator ? button("Resume", () => resume(pause, what(pause)), { "aria-label": "Resume " + what(pause) }) : "–"]);
	const free = [...new Set(report.links.map((link) => nodeOf(link.origin)))].filter((node) => !paused.some((pause) => pause.origin === node));
	return [paused.length ? table("What waits here since somebody wanted it so", ["What", "Since", "Reason", "Act"], rows) : h("p", {}, "Nothing is held back here."),
		operator && free.length ? h("p", { class: "buttons" }, free.map((node) => button("Hold back " + node + "…", () => pauseNode(node)))) : ""];
}

const reasonField = () => [h("label", { for: "reason" }, "Reason, for those who look at the status"), h("input", { id: "reason", name: "reason" })];

async function pauseNode(node) {
	const form = await ask({ title: "Hold back node " + node + "?", action: "Hold back", fields: reasonField(),
		text: "What users of node " + node + " write waits at this node, and what others wrote after they had seen it. The streams keep what waits." });
	if (!form) return;
	await post("pause", { origin: node, reason: form.get("reason") });
	say("Node " + node + " is held back; the bridge sees it within a second.");
}

function holdForm() {
	const field = h("input", { id: "hold-table", name: "table", placeholder: "public.item", required: true, pattern: "[^.]+[.].+" });
	return h("form", { class: "row", onsubmit: async (event) => {
		event.preventDefault();
		const name = field.value;
		const form = await ask({ title: "Hold back table " + name + "?", action: "Hold back", fields: reasonField(),
			text: "Transactions of other nodes that touch table " + name + " wait at this node, and what stands behind them." });
		if (!form) return;
		button("", async () => {
			await post("pause", { table: name, reason: form.get("reason") });
			field.value = "";
			say("Table " + name + " is held back; the bridge sees it within a second.");
		}).click();
	} }, h("label", { for: "hold-table" }, "Hold back a table"), field, h("button", { type: "submit" }, "Hold back…"));
}

async function resume(pause, what) {
	await post("resume", { origin: pause.origin ?? "", table: pause.table ?? "" });
	say("What waited of " + what + " is applied now.");
}

function factsOf(report) {
	const facts = [
		["Local changes", report.capture.state || "not read"],
		["Last local transaction", count(report.seq) + (report.stamp ? ", " + time(report.stamp) : "")],
		["Safe at the broker up to", count(report.publisher.durable_seq) + " (" + (report.publisher.state || "–") + ")"],
		["Slot " + report.slot.slot, report.slot.state + ", holds " + bytes(report.slot.wal_held_bytes) + " of WAL"],
		["Own stream", bytes(report.stream.bytes) + (report.stream.limit_bytes ? " of " + bytes(report.stream.limit_bytes) : "")],
		["Conflicts in the last minute", count(report.conflicts_per_minute)],
	];
	if (report.quarantined) facts.push(["Rows kept aside for a unique value", count(report.quarantined)]);
	if (report.owed) facts.push(["Rows that wait for large values", count(report.owed)]);
	if (report.joining) facts.push(["Joins from " + report.joining.from, report.joining.state + ", " + count(report.joining.rows) + " of about " + count(report.joining.about) + " rows"]);
	if (report.shadow) facts.push(["Shadow mode", plural(report.shadow.conflicts.reduce((n, x) => n + x.count, 0), "conflict", "conflicts") + " if all were applied now"]);
	const c = report.compared;
	if (c) facts.push(["Last comparison", c.waiting || time(c.at) + ": " + plural(c.rows, "row", "rows") + ", " + count(c.differences) + " differ"]);
	for (const clock of report.clocks ?? []) {
		facts.push(["Clock of " + clock.node, seconds(Math.abs(clock.ahead_seconds)) + (clock.ahead_seconds < 0 ? " behind" : " ahead") + ", within " + seconds(clock.within_seconds)]);
	}
	return facts;
}
