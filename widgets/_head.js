import { button, choice, copyText, el, lineForm, setText, toggle } from "./_kit.js";
import { percent } from "./_numbers.js";

/**
 * What stands above and below a view: the run's state and origin, its controls, a box for questions.
 */

/**
 * The line above a view: state, speed, engine, where the numbers come from; errors below it.
 * @param {any} store @param {AbortSignal} signal
 */
export function statusLine(store, signal) {
  const state = el("span.k2-state", { role: "status" });
  const facts = el("span.k2-facts");
  const badge = el("span.k2-badge");
  const more = actions(store, signal);
  const notice = el("div.k2-notice", { role: "alert", hidden: true });
  const write = () => {
    const { status } = store, parts = statusParts(status, store.get("about") ?? {}, store.data.n);
    setText(state, parts.state);
    state.dataset.state = status.state ?? "";
    setText(facts, parts.facts);
    setText(badge, status.provenance ?? "");
    badge.title = PROVENANCE[status.provenance] ?? "";
    const failed = store.outcome?.error ?? "", text = store.notice || failed || status.error || "", trace = store.notice || failed ? "" : status.traceback;
    notice.hidden = !text;
    if (notice.dataset.text === text) return;
    notice.dataset.text = text;
    notice.replaceChildren(text);
    if (trace) notice.append(el("details", {}, el("summary", { text: "Traceback" }), el("pre", { text: trace })));
  };
  store.follow(write, signal);
  return el("div.k2-head", {}, el("div.k2-status", {}, state, facts, badge, more), notice);
}

/** Freeze, Save trace, Export HTML, Copy as code. @param {any} store @param {AbortSignal} signal */
export function actions(store, signal) {
  const ask = (type) => () => { store.outcome = null; store.send({ type }); };
  const freeze = toggle("Freeze", (on) => store.freeze(on), signal);
  const save = button("Save trace", ask("save"), signal), page = button("Export HTML", ask("export"), signal);
  const copy = button("Copy as code", () => copyText(store.get("code") || "", copy), signal);
  const said = el("p.k2-said", { role: "status" });
  const box = el("div.k2-menu", {}, freeze, save, page, copy, said);
  const node = el("details.k2-more", {}, el("summary", { text: "Actions" }), box);
  freeze.title = "Hold what is shown; what comes meanwhile is shown afterwards";
  node.addEventListener("keydown", (event) => { if (event.key === "Escape" && node.open) { node.open = false; node.querySelector("summary")?.focus(); event.stopPropagation(); } }, { signal });
  const write = () => {
    const { action, text, error } = store.outcome ?? {};
    for (const [each, name] of [[save, "save"], [page, "export"]]) { each.disabled = !store.can(name); each.title = each.disabled ? "Needs a running kernel behind this page" : ""; }
    copy.disabled = !store.get("code");
    freeze.setAttribute("aria-pressed", String(store.frozen !== null));
    setText(said, action === "save" || action === "export" ? String(text ?? error ?? "") : "");
  };
  store.follow(write, signal);
  return node;
}

/** What a provenance badge means. */
export const PROVENANCE = {
  measured: "Read from the model while it ran.",
  derived: "Computed from what was measured.",
  missing: "Not captured in this run.",
};

const NUMBER = new Intl.NumberFormat("en-GB"); // made once: it is slow to make, and written at each change

/**
 * The words of the status line.
 * @param {any} status @param {any} about @param {number} tokens
 */
export function statusParts(status, about, tokens) {
  const words = { answer: "answered", length: "token limit reached", stopped: "stopped by you", budget: "step budget used up", context: "context full", error: "failed" };
  const name = status.state ?? "waiting";
  const state = status.reason ? `${name}: ${words[status.reason] ?? status.reason}` : name;
  const facts = [about.model, `${NUMBER.format(tokens)} tokens`];
  if (status.speed > 0) facts.push(`${status.speed < 10 ? status.speed.toFixed(1) : Math.round(status.speed)} tokens/s`);
  facts.push(status.engine, status.dtype, captureWords(status));
  return { state, facts: facts.filter(Boolean).join(" · ") };
}

/** The capture level and what it costs. @param {any} status */
export function captureWords({ capture, capture_bytes: bytes, capture_share: share }) {
  if (!capture) return "";
  const size = bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : bytes >= 1e3 ? `${(bytes / 1e3).toFixed(1)} kB` : `${Math.round(bytes)} B`;
  return `capture: ${capture}${bytes ? `, ${size} per token${share ? ` and ${percent(share)} of the time` : ""}` : ""}`;
}

/** Stop, pause, step, slow down. @param {any} store @param {AbortSignal} signal */
export function controls(store, signal) {
  const send = (message) => () => store.send(message);
  const stop = button("Stop", send({ type: "stop" }), signal);
  const pause = button("Pause", () => store.send({ type: store.status.state === "paused" ? "resume" : "pause" }), signal);
  const token = button("Step token", send({ type: "step", unit: "token" }), signal);
  const layer = button("Step layer", send({ type: "step", unit: "layer" }), signal);
  const pace = choice("Speed", [["0", "full speed"], ["20", "20/s"], ["5", "5/s"], ["1", "1/s"]], "0", (rate) => store.send({ type: "pace", rate: Number(rate) }), signal);
  const write = () => {
    const { state, controls: live } = store.status, paused = state === "paused";
    if (!live) pace.control.value = "0";
    group.hidden = !live; // what has ended cannot be controlled
    setText(pause, paused ? "Resume" : "Pause");
    for (const node of [stop, pause, pace.control]) node.disabled = !live;
    for (const node of [token, layer]) { node.disabled = !live || !paused; node.title = live && !paused ? "Pause first" : ""; }
  };
  const group = el("div.k2-group", { role: "group", "aria-label": "Run" }, stop, pause, token, layer, pace);
  store.follow(write, signal);
  return group;
}

/** Plays what is recorded: the playhead goes from token to token. @param {any} store @param {AbortSignal} signal */
export function player(store, signal) {
  let speed = 10, timer = 0, at = -1; // a place of its own: the pointer takes the playhead along
  const stop = () => { clearInterval(timer); timer = 0; write(); };
  const go = () => {
    if (at + 1 >= store.data.n) { stop(); return; }
    store.hover({ playhead: ++at });
  };
  const begin = () => { clearInterval(timer); timer = /** @type {any} */ (setInterval(go, 1000 / speed)); };
  const play = button("Play", () => {
    if (timer) { stop(); return; }
    const head = store.get("playhead");
    at = head < 0 || head >= store.data.n - 1 ? 0 : head;
    store.hover({ playhead: at });
    begin();
    write();
  }, signal, { title: "Go through the recorded tokens" });
  const pace = choice("at", [["2", "2/s"], ["10", "10/s"], ["40", "40/s"]], "10", (value) => { speed = Number(value); if (timer) begin(); }, signal);
  const node = el("div.k2-group", { role: "group", "aria-label": "Playback" }, play, pace);
  function write() {
    node.hidden = !store.data.n || store.busy;
    if (timer && node.hidden) { stop(); return; }
    setText(play, timer ? "Hold" : "Play");
  }
  signal.addEventListener("abort", () => clearInterval(timer));
  store.follow(write, signal);
  return node;
}

/**
 * A box in which a person asks the model. A question waits while another run has the engine, and
 * comes back into the box where it cannot be run.
 * @param {any} store @param {AbortSignal} signal
 */
export function askBox(store, signal) {
  let waiting = "";
  const { node, input } = lineForm({ style: "k2-ask", label: "Question to the model", word: "Ask" }, () => {
    if (!input.value.trim() || store.busy || waiting) return;
    [waiting, input.value, store.outcome] = [input.value, "", null];
    store.send({ type: "ask", text: waiting });
    store.tell();
  }, signal);
  store.follow(() => {
    const { outcome, notice } = store;
    if (waiting && (outcome?.action === "ask" || notice)) {
      if (outcome?.error || notice) input.value ||= waiting;
      waiting = "";
    }
    node.hidden = !store.can("ask");
    node.querySelector("button").disabled = store.busy || waiting !== "";
    input.placeholder = waiting ? "Your question waits until the engine is free …" : store.busy ? "The model is at work …" : "Ask the model something";
  }, signal);
  return node;
}
