// The cluster as a picture: nodes on a circle, and between them what goes each way.
import { h, rate, s, seconds } from "./dom.js";

const radius = 22, apart = 7; // of a node; of the two ways of a link
const labelled = 12; // with more links than that the figures are in the table alone

export const nodeOf = (origin) => origin.split("/")[0];

// flows gives what reports say of who reads from whom: one entry for each way, by "from>to".
export function flows({ status, others, rates, otherRates }) {
	const ways = new Map();
	const at = (from, to) => {
		const key = from + ">" + to;
		if (!ways.has(key)) ways.set(key, { from, to, state: "unknown", rate: undefined, lag: undefined, queued: 0, parked: 0, waiting: "" });
		return ways.get(key);
	};
	for (const [a, b] of status.links) {
		at(a, b);
		at(b, a);
	}
	const grave = ["unknown", "connected", "waiting", "away"];
	const tell = (report, rates) => {
		for (const link of report.links) {
			const way = at(link.link, report.node);
			if (grave.indexOf(link.state) > grave.indexOf(way.state)) {
				way.state = link.state;
				way.waiting = link.waiting ?? "";
			}
			if (rates?.[link.origin] !== undefined) way.rate = (way.rate ?? 0) + rates[link.origin];
			way.lag = Math.max(way.lag ?? 0, link.lag_seconds);
			way.queued += link.queued;
			way.parked += link.parked;
		}
	};
	tell(status.report, rates);
	for (const other of others) if (other.report) tell(other.report, otherRates[other.node]);
	return [...ways.values()];
}

// stateOf says how a node is, by its own report; "unknown" if it is not heard.
export function stateOf(node, { status, others }) {
	const own = node === status.report.node;
	const other = others.find((x) => x.node === node);
	const report = own ? status.report : other?.report;
	if (report) return { state: report.well ? (report.alarms.length ? "warned" : "well") : "unwell", text: report.verdict, report };
	return { state: "unknown", text: other?.error ?? "not asked yet" };
}

const words = { connected: "connected", waiting: "waits", away: "away", unknown: "not known" };

export const stateWord = (state) => words[state] ?? state;

// picture draws into an element; the function that it returns draws anew what has changed, and leaves alone what moves.
export function picture(into) {
	const drawing = s("svg", { class: "topology", role: "img", "aria-label": "Topology of the cluster; the tables below have all of it" });
	const lines = s("g"), labels = s("g"), circles = s("g");
	drawing.append(lines, circles, labels);
	into.append(drawing, h("p", { class: "legend" },
		["connected", "waiting", "away", "unknown"].map((state) => h("span", {},
			s("svg", { width: 28, height: 8, "aria-hidden": "true" }, s("line", { class: "way " + state, x1: 0, y1: 4, x2: 28, y2: 4 })), " ", stateWord(state)))));
	const drawn = new Map();
	const element = (group, key, tag) => {
		if (!drawn.has(key)) {
			drawn.set(key, { element: s(tag), fresh: true });
			group.append(drawn.get(key).element);
		}
		const entry = drawn.get(key);
		entry.fresh = true;
		return entry.element;
	};
	return (watched) => {
		const { status } = watched;
		const names = status.nodes.map((x) => x.node);
		const width = Math.max(280, into.clientWidth), height = names.length < 3 ? 170 : Math.min(420, Math.max(260, width * 0.6));
		drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
		drawing.setAttribute("height", height);
		const place = (name) => {
			const i = names.indexOf(name), turn = (2 * Math.PI * i) / names.length - (names.length < 3 ? Math.PI : Math.PI / 2);
			return [width / 2 + (width / 2 - 70) * Math.cos(turn), height / 2 - 6 + (height / 2 - 54) * Math.sin(turn)];
		};
		for (const entry of drawn.values()) entry.fresh = false;
		const ways = flows(watched).filter((way) => names.includes(way.from) && names.includes(way.to));
		for (const way of ways) {
			const [x1, y1] = place(way.from), [x2, y2] = place(way.to);
			const length = Math.hypot(x2 - x1, y2 - y1) || 1, ux = (x2 - x1) / length, uy = (y2 - y1) / length; // along the way
			const nx = -uy, ny = ux; // across it, to the side on which it is drawn
			const at = (along, across) => (x1 + ux * along + nx * across).toFixed(1) + " " + (y1 + uy * along + ny * across).toFixed(1);
			const from = radius + 5, to = length - radius - 5;
			const key = way.from + ">" + way.to, kind = way.state + (way.rate > 0 ? " flows" : "");
			const line = element(lines, "line " + key, "path");
			line.setAttribute("class", "way " + kind);
			line.setAttribute("d", `M${at(from, apart)}L${at(to - 8, apart)}`);
			const head = element(lines, "head " + key, "path");
			head.setAttribute("class", "head " + way.state);
			head.setAttribute("d", `M${at(to, apart)}L${at(to - 11, apart + 6)}L${at(to - 11, apart - 6)}Z`);
			if (ways.length > (width < 480 ? 2 : 2 * labelled) || way.state === "unknown") continue;
			const label = element(labels, "label " + key, "text");
			const [x, y] = at(length * 0.6, apart + 12).split(" ");
			label.setAttribute("x", x);
			label.setAttribute("y", Number(y) + 4 + ny * 5);
			label.setAttribute("text-anchor", Math.abs(nx) < 0.3 ? "middle" : nx > 0 ? "start" : "end");
			label.textContent = way.state === "connected" ? rate(way.rate) + ", " + seconds(way.lag) : stateWord(way.state);
		}
		for (const { node, role } of status.nodes) {
			const [x, y] = place(node), own = node === status.report.node, { state } = stateOf(node, watched);
			const circle = element(circles, "circle " + node, "circle");
			circle.setAttribute("class", "node " + state + (own ? " own" : ""));
			for (const [name, value] of [["cx", x], ["cy", y], ["r", radius]]) circle.setAttribute(name, value);
			const mark = element(labels, "mark " + node, "text");
			mark.setAttribute("class", "mark");
			mark.setAttribute("x", x);
			mark.setAttribute("y", y + 5);
			mark.textContent = { well: "✓", warned: "!", unwell: "✕", unknown: "?" }[state];
			const name = element(labels, "name " + node, "text");
			name.setAttribute("class", "name" + (own ? " own" : ""));
			name.setAttribute("x", x);
			name.setAttribute("y", y + radius + 17);
			name.textContent = node + (width < 480 ? "" : own ? " (this node)" : role ? " (" + role + ")" : "");
		}
		for (const [key, entry] of drawn) {
			if (entry.fresh) continue;
			entry.element.remove();
			drawn.delete(key);
		}
	};
}
