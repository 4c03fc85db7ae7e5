// The configuration in force, without its secrets.
import { get } from "./api.js";
import { h, table } from "./dom.js";

export async function settings(into) {
	into.append(h("h1", {}, "Configuration"), h("p", {}, "What the bridge runs with now, the last reload included. Secrets are not shown. Change the file of the node, and then ",
		h("code", {}, "pgbridge reload"), " for what is marked so, or start the bridge again."));
	const all = await get("settings"), list = h("div", {});
	const show = (every) => list.replaceChildren(table("Settings", ["Key", "Value", "Default", "What for"],
		all.filter((x) => every || x.set).map((x) => [[h("code", {}, x.key), x.live ? " (reload)" : ""], h(x.set ? "strong" : "span", {}, x.value || "–"), x.default || "–", x.why]), { id: "settings" }));
	const box = h("input", { type: "checkbox", onchange: () => show(!box.checked) });
	into.append(h("p", {}, h("label", { class: "check" }, box, " Only those that are not as by default")), list);
	show(true);
}
