/** The kept answers as CSV, JSON and ZIP. */

import type { Answer, History, Kept } from "./history";
import { zip, type ZipEntry } from "./zip";

const FORMAT = 1;
const COLUMNS: readonly (readonly [string, (answer: Answer) => string | number | null | undefined])[] = [
  ["id", (answer) => answer.id],
  ["at", (answer) => answer.at],
  ["plant", (answer) => answer.plant],
  ["verdict", (answer) => answer.verdict],
  ["label", (answer) => answer.label],
  ["probability", (answer) => round(answer.probability)],
  ["ood_score", (answer) => round(answer.oodScore)],
  ["problem", (answer) => answer.problem],
  ["latitude", (answer) => answer.place?.latitude],
  ["longitude", (answer) => answer.place?.longitude],
  ["accuracy_m", (answer) => answer.place?.accuracyM],
  ["model", (answer) => answer.model],
  ["photo", (answer) => answer.photo],
];

/** The keys are those of a device's detections where both have them. */
export function answerJson(answer: Answer): Record<string, unknown> {
  const probabilities = Object.entries(answer.probabilities).map(([name, value]) => [name, round(value)]);
  return {
    id: answer.id,
    at: answer.at,
    plant: answer.plant,
    verdict: answer.verdict,
    problem: answer.problem,
    label: answer.label,
    probability: round(answer.probability),
    probabilities: Object.fromEntries(probabilities),
    ood_score: round(answer.oodScore),
    place: answer.place && {
      latitude: answer.place.latitude,
      longitude: answer.place.longitude,
      accuracy_m: answer.place.accuracyM,
    },
    model: answer.model,
    photo: answer.photo,
  };
}

export function toJson(answers: readonly Answer[]): string {
  return `${JSON.stringify({ format: FORMAT, answers: answers.map(answerJson) }, null, 1)}\n`;
}

/** Returns RFC 4180, in UTF-8 with a mark, without which spreadsheets read it in another encoding. */
export function toCsv(answers: readonly Answer[]): string {
  const rows = answers.map((answer) => COLUMNS.map(([, value]) => field(value(answer))));
  return `\ufeff${[COLUMNS.map(([name]) => name), ...rows].map((row) => `${row.join(",")}\r\n`).join("")}`;
}

function field(value: string | number | null | undefined): string {
  const text = value === null || value === undefined ? "" : String(value);
  // A spreadsheet runs text that begins like this as a formula.
  const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function round(value: number | null): number | null {
  return value === null ? null : Math.round(value * 10_000) / 10_000;
}

/** Returns the photos with both tables. */
export async function toZip(answers: readonly Kept[], history: History): Promise<Blob> {
  return zip(entries(answers, history));
}

async function* entries(answers: readonly Kept[], history: History): AsyncGenerator<ZipEntry> {
  const now = new Date();
  yield { name: "answers.csv", content: new Blob([toCsv(answers)]), at: now };
  yield { name: "answers.json", content: new Blob([toJson(answers)]), at: now };
  for (const { id, at, photo } of answers) {
    const content = await history.photo(id);
    if (content) yield { name: `photos/${photo}`, content, at: new Date(at) };
  }
}

/** "2026-03-01T10-20-30-1a2b.jpg": sorts by time, and is allowed on every system. */
export function photoName(at: string, id: string, type: string): string {
  const suffix = { "image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", "image/heic": "heic" }[type] ?? "img";
  return `${at.slice(0, 19).replaceAll(":", "-")}-${id.slice(0, 4)}.${suffix}`;
}
