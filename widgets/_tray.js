import { NAMES } from "./_numbers.js";
import { button, choice, copyText, el, offer, setText, table } from "./_kit.js";

/**
 * Shared by the widgets that change a run: the tray of edits, and what can be done with it. An edit
 * is the JSON of k2lab/engine/edits.py. Not here: what an edit does to the network.
 */

/** What can be done to an expert: words for the button, and what else stands in the edit. */
export const DEEDS = {
  zero: { label: "Zero", title: "Drop this expert's output; the others keep their weights" },
  around: { label: "Route around", title: "This expert cannot be chosen; the next best takes its place" },
  force: { label: "Force", title: "Always choose this expert, with the weight of its own score" },
  lower: { label: "Bias −", title: "Lower its choice score by 0.05", more: { amount: -0.05 } },
  raise: { label: "Bias +", title: "Raise its choice score by 0.05", more: { amount: 0.05 } },
};

/** What can be done to an attention head. */
export const HEAD_DEEDS = {
  zero_heads: { label: "Zero head", title: "Drop this head's output before the output projection" },
};

/** The edit of a deed. @param {keyof DEEDS} deed @param {any} scope `tokens`, `segment` or nothing */
export function editOf(deed, layer, expert, scope = {}) {
  const { more } = DEEDS[deed];
  return { do: more ? "bias" : deed, layer, experts: [expert], ...more, ...scope };
}

/** The edits with one more; the same bias twice adds up, what takes itself back is gone. */
export function withEdit(edits, edit) {
  const key = ({ amount, ...rest }) => JSON.stringify(rest, Object.keys(rest).sort());
  const place = edits.findIndex((one) => key(one) === key(edit));
  if (place < 0) return [...edits, edit];
  if (edit.do !== "bias") return edits;
  const amount = Math.round((edits[place].amount + edit.amount) * 1000) / 1000;
  return amount ? edits.with(place, { ...edits[place], amount }) : edits.toSpliced(place, 1);
}

/** An edit in words. */
export function editWords(edit) {
  const whom = edit.heads ? `head ${edit.heads.join(", ")}` : edit.experts ? `expert ${edit.experts.join(", ")}` : edit.rule ?? "";
  const what = { zero: "zero", around: "route around", force: "force", bias: `bias ${edit.amount > 0 ? "+" : "−"}${Math.abs(edit.amount ?? 0)} on`, zero_heads: "zero", router: "router" }[edit.do] ?? edit.do;
  const when = edit.tokens ? `, tokens ${edit.tokens[0]} to ${edit.tokens[1] - 1}` : edit.segment ? `, ${(NAMES[edit.segment] ?? edit.segment).toLowerCase()} only` : "";
  return `L${edit.layer}: ${what} ${whom}${when}`;
}

/**
 * The cell of Python that does what the tray does: the run, control and treatment, the run under edits.
 * @param {any[]} edits @param {string} code the cell that makes the run; its last line names it
 */
export function editCode(edits, code) {
  if (!edits.length) return "";
  const lines = code.trimEnd().split("\n"), name = lines.pop() || "run";
  return [...lines, `edits = [\n${edits.map((edit) => `    ${JSON.stringify(edit)},\n`).join("")}]`, `print(${name}.experiment(edits))`,
    `treated = ${name}.branch(${name}.turns[0], edits=[*${name}.recipe.edits, *edits]).wait()`, "lab.show(treated)", ""].join("\n");
}

/** The expert in focus, for the tray. @param {any} store */
export function expertOf(store) {
  return {
    deeds: DEEDS,
    words: () => (store.get("layer") >= 0 && store.get("expert") >= 0 ? `L${store.get("layer")} expert ${store.get("expert")}` : ""),
    edit: (deed, scope) => editOf(deed, store.get("layer"), store.get("expert"), scope),
  };
}

/** For which tokens an edit acts: words and fields, from what is selected. */
export function scopes(store) {
  const range = store.range(), head = store.get("playhead");
  const found = [["all", "all tokens", {}]];
  if (head >= 0) found.push(["token", `token ${head}`, { tokens: [head, head + 1] }]);
  if (range) found.push(["range", `tokens ${range[0]} to ${range[1] - 1}`, { tokens: range }]);
  for (const kind of ["thinking", "answer", "call"]) found.push([kind, `${NAMES[kind].toLowerCase()} only`, { segment: kind }]);
  return found;
}

/** What came of the last action, in words. @param {any} outcome */
export function outcomeWords(outcome) { return String(outcome?.error ?? outcome?.text ?? ""); }

/** An experiment as rows of a table. @param {any} report as `Experiment.to_json` of k2lab/engine/experiment.py gives it */
export function reportRows(report) {
  const short = (value) => (Math.abs(value) >= 1e4 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(1) : Number(value.toPrecision(3)).toString());
  const names = { logits: "logits, mean |Δ|", kl: "KL, nats", tokens: "other token likeliest" };
  return report.effects.map((one) => [names[one.measure] ?? one.measure, short(one.treatment), short(one.control), short(one.difference), `${short(one.low)} … ${short(one.high)}`, one.p.toFixed(2)]);
}

/**
 * The tray: deeds for what is in focus, the edits so far, Run control + treatment, Copy as code.
 * @param {any} store @param {AbortSignal} signal
 * @param {{deeds: Record<string, any>, words: () => string, edit: (deed: any, scope: any) => any}} [whom] an expert unless given; no words: nothing in focus
 * @returns {{node: HTMLElement, write: () => void}}
 */
export function tray(store, signal, whom = expertOf(store)) {
  let scope = "", waiting = false;
  const edits = () => store.get("edits") ?? [], change = (all) => store.select({ edits: all });
  const target = el("span.k2-target");
  const add = (deed) => {
    const fields = scopes(store).find(([name]) => name === select.value)?.[2] ?? {};
    change(withEdit(edits(), whom.edit(deed, fields)));
  };
  const deeds = Object.entries(whom.deeds).map(([deed, { label, title }]) => button(label, () => add(/** @type {any} */ (deed)), signal, { title }));
  const where = choice("for", [["all", "all tokens"]], "all", (value) => { scope = value; }, signal);
  const select = where.control;
  const list = el("ul.k2-edits", { "aria-label": "Edits" });
  const run = button("Run control + treatment", () => {
    waiting = true;
    store.send({ type: "treat", edits: edits(), at: store.pinned()[0] });
    write();
  }, signal, { class: "k2-button k2-strong" });
  const copy = button("Copy as code", () => copyText(editCode(edits(), store.get("code") ?? ""), copy), signal);
  const empty = button("Clear", () => { store.outcome = null; change([]); store.tell(); }, signal);
  const report = el("div.k2-report", { role: "status" });
  const node = el("div.k2-tray", { role: "group", "aria-label": "Edits of the network" },
    el("div.k2-deeds", {}, target, ...deeds), list, el("div.k2-deeds", {}, where, run, copy, empty), report);
  let written = "", told = null;
  function write() {
    const all = edits(), words = whom.words();
    setText(target, words || "Nothing chosen yet");
    for (const each of deeds) each.disabled = !words;
    const known = scopes(store), usual = known.some(([name]) => name === store.get("segment")) ? store.get("segment") : "all";
    const now = known.some(([name]) => name === scope) ? scope : usual, key = JSON.stringify([now, known.map(([name, text]) => [name, text])]);
    if (select.dataset.key !== key) {
      select.dataset.key = key;
      offer(select, known, now);
    }
    const can = store.can("treat");
    if (waiting && store.outcome?.action === "treat") waiting = false;
    run.disabled = !all.length || !can || store.busy || waiting;
    run.title = can ? "Runs the edits, and as control random experts of nearly the same load; reports the difference" : "Only a live lab can run this; Copy as code gives the cell";
    setText(run, waiting ? "Running control + treatment …" : "Run control + treatment");
    copy.disabled = empty.disabled = !all.length;
    const mine = store.outcome?.action === "treat" || store.outcome?.error ? store.outcome : null;
    if (told !== mine) {
      told = mine;
      report.replaceChildren(...(mine?.report ? [table(`${mine.report.controls.length} controls, ${mine.report.tokens} tokens, seed ${mine.report.seed}. ${mine.text}`, ["measure", "treatment", "control", "difference", "95 % interval", "p"], reportRows(mine.report))] : [outcomeWords(mine)]));
    }
    const text = JSON.stringify(all);
    if (text === written) return;
    written = text;
    list.replaceChildren(...all.map((edit, place) => el("li", {}, el("span", { text: editWords(edit) }),
      button("×", () => change(edits().toSpliced(place, 1)), signal, { class: "k2-button k2-small", "aria-label": `Remove: ${editWords(edit)}` }))));
  }
  store.follow(write, signal);
  return { node, write };
}
