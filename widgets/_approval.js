import { button, el } from "./_kit.js";

/**
 * What stands in a tool call's card when a person was asked about it: the reason, the arguments as
 * they would be run (untrusted), and while it waits two buttons. A word holds for this call alone:
 * its digest stands for run, step, tool and arguments.
 * @param {any} call @param {any} store @param {AbortSignal} signal
 */
export function approvalCard(call, store, signal) {
  const { approval, why, shown, digest } = call, open = approval === "waiting" && store.busy;
  const words = [["Allow once", true], ["Refuse", false]].map(([text, allowed]) => button(text, () => store.send({ type: "approve", digest, allowed }), signal));
  return el("div", { class: "k2-call-result" }, el("span", { class: "k2-call-label", text: approval }), el("pre", { text: open ? `${why}\n${shown}` : why }), ...(open ? words : []));
}
