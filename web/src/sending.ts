/** Sends an answer with its photo to an address of the user's own; nothing is sent without one. */

import { answerJson } from "./exporting";
import type { Answer } from "./history";

const TIMEOUT_MS = 30_000;

/** Returns the address, or null if it is none that a page can send to. */
export function checkedAddress(text: string): string | null {
  try {
    const url = new URL(text.trim());
    return ["https:", "http:"].includes(url.protocol) && !url.username && !url.password ? url.href : null;
  } catch {
    return null;
  }
}

/** POSTs a form with the parts "answer" (JSON) and "photo"; returns why it failed, "" if it did not. */
export async function send(address: string, answer: Answer, photo: Blob): Promise<string> {
  const form = new FormData();
  form.set("answer", new Blob([JSON.stringify(answerJson(answer))], { type: "application/json" }), "answer.json");
  form.set("photo", photo, answer.photo);
  try {
    const response = await fetch(address, {
      method: "POST",
      body: form,
      credentials: "omit",
      referrerPolicy: "no-referrer",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    return response.ok ? "" : `HTTP ${response.status}`;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}
