/** What the page says about one photo, and about the leaves of one plant. */

import { inLanguage, make } from "./elements";
import type { Speech } from "./language";
import type { PlantHealth } from "./pooling";
import type { Texts } from "./texts/en";
import type { Prediction, Problem } from "./verdict";

const PROBLEM_TEXTS: Readonly<Record<Exclude<Problem, "">, keyof Texts>> = {
  "too dark": "problem_dark",
  "too bright": "problem_bright",
  "no leaf to be seen": "problem_leaf",
  blurred: "problem_blurred",
  "smeared or cut off": "problem_smeared",
};
/** Less probable classes say nothing to somebody who looks for the right one. */
const LEAST_GUESS = 0.1;
const MOST_GUESSES = 3;

export function headlineOf(prediction: Pick<Prediction, "verdict" | "problem" | "label">, speech: Speech): string {
  const { verdict, problem, label } = prediction;
  if (verdict === "unusable" && problem) return speech.text(PROBLEM_TEXTS[problem]);
  if (verdict === "unfamiliar") return speech.text("unfamiliar");
  return verdict === "unsure" ? speech.text("unsure") : speech.classWords(label).name;
}

export function resultView(prediction: Prediction, classes: readonly string[], speech: Speech): HTMLElement[] {
  const { verdict, label, probability } = prediction;
  const words = speech.classWords(label);
  const badge = make("p", speech.text(`verdict_${verdict}`), { class: "badge", "data-testid": "verdict", "data-verdict": verdict });
  const headline = make("h2", headlineOf(prediction, speech), verdict === "answer" ? inLanguage(words) : { class: "no-answer" });
  const said = [badge, headline];
  if (verdict === "answer") {
    said.push(reason(speech.text("sure", { percent: speech.percent(probability) })), ...advice(words, speech));
  }
  if (verdict === "unsure") said.push(reason(speech.text("unsureMost", { list: guesses(prediction, classes, speech) })));
  if (verdict === "unfamiliar") said.push(reason(speech.text("unfamiliarMore")));
  return said;
}

function reason(text: string): HTMLElement {
  return make("p", text, { class: "reason", "data-testid": "reason" });
}

function advice(words: ReturnType<Speech["classWords"]>, speech: Speech): HTMLElement[] {
  const said: HTMLElement[] = [];
  const language = inLanguage(words);
  if (words.look) said.push(make("h3", speech.text("whatNext")), make("p", words.look, language));
  if (words.warning) {
    said.push(make("h3", speech.text("warning")), make("p", words.warning, { ...language, class: "warning" }));
  }
  if (words.note && (words.look || words.warning)) said.push(make("p", words.note, { ...language, class: "quiet" }));
  return said;
}

function guesses({ probabilities }: Prediction, classes: readonly string[], speech: Speech): string {
  const ranked = classes.map((label, i) => ({ label, probability: probabilities[i]! }));
  ranked.sort((a, b) => b.probability - a.probability);
  const told = ranked.slice(0, MOST_GUESSES).filter(({ probability }, i) => i === 0 || probability >= LEAST_GUESS);
  const names = told.map(({ label, probability }) => `${speech.classWords(label).name} (${speech.percent(probability)})`);
  return new Intl.ListFormat(speech.language, { type: "disjunction" }).format(names);
}

export function plantView(leaves: number, health: PlantHealth | null, speech: Speech): HTMLElement[] {
  const heading = make("h3", speech.text("plant"));
  if (!health) return [heading, make("p", speech.text("plantNone"))];
  const { counted, illLeaves, verdict, label } = health;
  const words = speech.classWords(label);
  const said = [
    heading,
    make("p", illLeaves ? speech.text("plantIll", { ill: illLeaves, n: counted }) : speech.text("plantWell", { n: counted }), {
      class: "reason",
    }),
    verdict === "answer"
      ? make("p", speech.text("plantMost", { name: words.name }), { ...inLanguage({ ...words, language: "" }), "data-testid": "plant-label" })
      : make("p", speech.text("plantUnsure"), { "data-testid": "plant-label" }),
  ];
  if (leaves > counted) said.push(make("p", speech.text("plantLeftOut", { n: leaves - counted })));
  return said;
}
