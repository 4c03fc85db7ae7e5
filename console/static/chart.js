// Lines over the last minutes.
import { h, s } from "./dom.js";

const left = 58, right = 8, top = 10, bottom = 22, height = 160;

// nice is the least round number that is not below x.
function nice(x) {
	const ten = 10 ** Math.floor(Math.log10(x));
	return [1, 2, 5, 10].map((step) => step * ten).find((step) => step >= x * 0.9999);
}

// chart draws series of [milliseconds, value] into an element, and gives a function that draws them anew.
export function chart(into, { title, write, least, span }) {
	const drawing = s("svg", { class: "chart", role: "img", height });
	const legend = h("ul", { class: "legend" });
	into.append(h("h3", {}, title), drawing, legend);
	return (series) => {
		const width = Math.max(280, into.clientWidth), now = Date.now();
		const most = nice(Math.max(least, ...series.flatMap((line) => line.points.map((point) => point[1]))));
		const x = (at) => left + (width - left - right) * (1 - (now - at) / (span * 1000));
		const y = (value) => top + (height - top - bottom) * (1 - value / most);
		const said = series.map((line) => line.name + " " + write(line.points.at(-1)?.[1]));
		drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
		drawing.setAttribute("aria-label", title + " now: " + said.join(", "));
		drawing.replaceChildren(
			...[0, 0.5, 1].map((part) => s("g", { class: "grid" },
				s("line", { x1: left, y1: y(most * part), x2: width - right, y2: y(most * part) }),
				s("text", { x: left - 6, y: y(most * part) + 4, "text-anchor": "end" }, write(most * part)))),
			s("text", { class: "axis", x: left, y: height - 5 }, "−" + span / 60 + " min"),
			s("text", { class: "axis", x: width - right, y: height - 5, "text-anchor": "end" }, "now"),
			...series.map((line, i) => s("polyline", { class: "line line" + (i % 6) + (i >= 6 ? " again" : ""),
				points: line.points.filter(([at]) => x(at) >= left).map(([at, value]) => x(at).toFixed(1) + "," + y(value).toFixed(1)).join(" ") })));
		legend.replaceChildren(...series.map((line, i) => h("li", {},
			s("svg", { width: 28, height: 8, "aria-hidden": "true" }, s("line", { class: "line line" + (i % 6) + (i >= 6 ? " again" : ""), x1: 0, y1: 4, x2: 28, y2: 4 })),
			" " + said[i])));
	};
}
