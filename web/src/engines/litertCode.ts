/**
 * Takes the place of @litertjs/wasm-utils in the bundle.
 *
 * The package's own loader adds a script element to the page, or calls importScripts, which module workers refuse.
 */

import factory from "@litertjs/core/wasm/litert_wasm_compat_internal.js";

let wasmBinary: Uint8Array;

export function setCode(code: Uint8Array): void {
  wasmBinary = code;
}

/** Has the name and the result of the function that it replaces. */
export async function createWasmLib<T>(library: new (module: unknown) => T): Promise<T> {
  // What the code prints is no message for a grower.
  return new library(await factory({ wasmBinary, print: () => {}, printErr: () => {} }));
}
