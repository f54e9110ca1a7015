/** What the page says where something fails: one plain sentence each. */

import { ModelError } from "./manifest";
import { PhotoError } from "./preprocess";
import { ReleaseError } from "./release";
import type { Texts } from "./texts/en";

/** A module of one function that needs 128-bit SIMD, as the engine does. */
const SIMD_MODULE = Uint8Array.of(
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11,
); // prettier-ignore
const PHOTO_TEXTS = {
  heic: "error_heic",
  unreadable: "error_unreadable",
  "too large": "error_tooLarge",
  empty: "error_empty",
} as const;

class OldBrowserError extends Error {}

export function requireModernBrowser(): void {
  if (!globalThis.DecompressionStream || !globalThis.WebAssembly?.validate(SIMD_MODULE)) throw new OldBrowserError();
}

export function problemOf(error: unknown, otherwise: keyof Texts): keyof Texts {
  if (error instanceof PhotoError) return PHOTO_TEXTS[error.problem];
  if (error instanceof ReleaseError) return error.offline ? "error_offline" : "error_damaged";
  if (error instanceof OldBrowserError) return "error_old";
  return error instanceof ModelError ? "error_model" : otherwise;
}
