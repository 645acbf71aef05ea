import { clamp, decimal, KINDS, NAMES, percent } from "./_numbers.js";
import { button, el, lineForm } from "./_kit.js";

/**
 * Shared by the widgets that show tokens: a token's facts, and the box with its alternatives, from
 * which a run can branch. Not here: how a branch is made (k2lab/run.py).
 */

/** A token's text made visible. @param {string} text */
export function visible(text) { return text === "" ? "∅" : text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ | $/g, "␣"); }

/** Facts of a token as [label, value] pairs. */
export function tokenFacts(data, i) {
  const { ids, kinds, entropy, logprob } = data.column, given = Number.isNaN(logprob[i]);
  const facts = [["token", `${i} · id ${ids[i]}`], ["part", NAMES[KINDS[kinds[i]]]]];
  if (given) facts.push(["origin", "given, not chosen"]);
  else facts.push(["probability", percent(Math.exp(logprob[i]))], ["entropy", `${decimal(entropy[i])} nats`]);
  facts.push(["router margin", i < data.m ? decimal(data.margin(i), 4) : "not routed yet"]);
  return facts;
}

/**
 * The text in view with its strips, each token where the page has it.
 * @param {any} pen @param {HTMLElement} list of blocks @param {DOMRect} area that is seen
 */
export function paintText(pen, list, area) {
  for (const node of list.querySelectorAll(".k2-token, .k2-letter, .k2-call-name, .k2-call-state, .k2-call-result pre")) {
    const style = getComputedStyle(node), text = node.textContent ?? "";
    const [first, ...rest] = [...node.getClientRects()].filter((box) => box.bottom > area.top && box.top < area.bottom);
    if (!first || !text.trim()) continue;
    const [x, y] = [first.left - area.left + 8, first.top - area.top + 8], strip = node instanceof HTMLElement ? node.style.getPropertyValue("--strip") : "";
    pen.font = `${style.fontWeight >= "600" ? "bold " : ""}${style.fontSize} ${style.fontFamily}`;
    pen.textAlign = "left"; pen.textBaseline = "middle"; pen.fillStyle = style.color;
    pen.fillText(text.replace(/\n/g, " "), x + (node.matches(".k2-letter") ? 5 : 0), y + first.height / 2);
    if (strip) for (const box of [first, ...rest]) { pen.fillStyle = strip; pen.fillRect(box.left - area.left + 8, box.bottom - area.top + 5, box.width, 3); }
  }
}

/**
 * Alternatives of a token, near it. Pinned, in a live lab, each can be chosen instead.
 * @param {any} store @param {AbortSignal} signal @param {HTMLElement} home gets the focus of who leaves the box
 */
export function popover(store, signal, home) {
  const box = el("div.k2-pop", { hidden: true });
  let key = "", shown = -1;
  const writing = () => box.contains(document.activeElement) && document.activeElement instanceof HTMLInputElement;
  const branch = (message) => { store.outcome = null; store.send({ type: "branch", ...message }); };
  const row = (data, i, { id, text, p }, colour, live) => el("tr", { class: id === data.column.ids[i] && "k2-chosen" },
    el("td.k2-mono", {}, live ? button(visible(text), () => branch({ at: i, token: id }), signal, { class: "k2-pick", title: `Branch here with ${visible(text)}` }) : visible(text)),
    el("td.k2-bar", {}, el("span", { style: `width:${Math.max(1, p * 100)}%;background:${colour}` })),
    el("td.k2-number", { text: percent(p) }));
  function own(i) { // a text of the person's own
    const { node, input } = lineForm({ style: "k2-group k2-own", label: "Text to go on with", hint: "… or write what comes here", word: "Branch" }, () => { if (input.value) branch({ at: i, text: input.value }); }, signal);
    input.addEventListener("keydown", (event) => { if (event.key !== "Escape") return; input.blur(); store.clear(); home.focus({ preventScroll: true }); }, { signal });
    return node;
  }
  const show = (data, i, node, frame, colour) => {
    if (i !== shown && writing()) return; // what a person has begun to write stays
    shown = i;
    const top = data.top(i), live = store.pinned()[0] === i && store.can("branch") && !store.busy && top.length > 0;
    const now = `${store.epoch}|${i}|${live}|${colour}|${i < data.m}`;
    if (now !== key) {
      key = now;
      box.replaceChildren(el("div.k2-pop-token.k2-mono", { text: visible(data.texts[i]) }),
        el("dl", {}, ...tokenFacts(data, i).flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: value })])));
      if (top.length) box.append(el("table.k2-top", {}, el("tbody", {}, ...top.map((one) => row(data, i, one, colour, live)))));
      if (live) box.append(el("p.k2-hint", { text: "Choose another: the run branches here." }), own(i));
      box.classList.toggle("k2-live", live);
    }
    box.hidden = false;
    const area = frame.getBoundingClientRect(), at = node.getClientRects()[0] ?? node.getBoundingClientRect();
    const below = at.bottom - area.top + 6, above = at.top - area.top - box.offsetHeight - 6;
    box.style.left = `${clamp(at.left - area.left - 12, 4, Math.max(4, area.width - box.offsetWidth - 4))}px`;
    box.style.top = `${at.top - area.top > area.height * 0.55 ? Math.max(above, 40 - area.top) : below}px`;
  };
  return { box, show, hide: () => { if (!writing()) box.hidden = true; } };
}
