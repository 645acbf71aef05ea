import { el, onKeys, onTrait, storeView } from "./_kit.js";
import { statusLine } from "./_head.js";
import attention from "./attention.js";
import compare from "./compare.js";
import experts from "./experts.js";
import lens from "./lens.js";
import thoughts from "./thoughts.js";
import timeline from "./timeline.js";

/**
 * Dashboard: the widgets on one page with one status line. The text and the timeline stay; the maps
 * share a place, as a projector has no room for all. Not here: what any of them shows.
 */

/** The maps that share a place: key, words on the tab, the widget. */
export const TABS = [["experts", "Experts", experts], ["lens", "Routing", lens], ["attention", "Attention", attention], ["compare", "Compare", compare]];

function fill({ model, store, root, signal, fail }) {
  root.classList.add("k2-dashboard");
  const panel = (name, widget) => {
    const node = el("section.k2lab.k2-panel", { "aria-label": name });
    widget.fill({ model, store, root: node, signal, fail, compact: true });
    return node;
  };
  const tabs = [], panels = [], name = `k2-tab-${Math.floor(performance.now() * 1000)}`;
  const list = el("div.k2-tabs", { role: "tablist", "aria-label": "Views" });
  const side = el("div.k2-side", {}, list);
  TABS.forEach(([key, label, widget], place) => {
    const tab = el("button", { type: "button", class: "k2-tab", role: "tab", id: `${name}-${key}`, "aria-controls": `${name}-${key}-panel`, text: label });
    const node = panel(label, widget);
    node.id = `${name}-${key}-panel`;
    node.setAttribute("role", "tabpanel");
    node.setAttribute("aria-labelledby", tab.id);
    tab.addEventListener("click", () => choose(place), { signal });
    tabs.push(tab); panels.push(node);
    list.append(tab); side.append(node);
  });
  function choose(place, focus = false) {
    model.set("tab", TABS[place][0]);
    model.save_changes();
    show();
    if (focus) tabs[place].focus();
  }
  function show() {
    const at = Math.max(0, TABS.findIndex(([key]) => key === model.get("tab")));
    tabs.forEach((tab, place) => {
      tab.setAttribute("aria-selected", String(place === at));
      tab.tabIndex = place === at ? 0 : -1;
      panels[place].hidden = place !== at;
    });
  }
  onKeys(list, (key) => {
    const at = tabs.findIndex((tab) => tab.tabIndex === 0), to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[key];
    if (to === undefined) return false;
    choose((to + tabs.length) % tabs.length, true);
    return true;
  }, signal);
  const low = panel("Timeline", timeline);
  low.classList.add("k2-low");
  root.append(statusLine(store, signal), el("div.k2-board", {}, panel("Tokens", thoughts), side, low));
  onTrait(model, "tab", show, signal);
  show();
}

export default storeView(fill);
