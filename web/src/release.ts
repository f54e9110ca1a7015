/** The files of the release that this page belongs to, from the release's cache or else from the server. */

import { unpackLzma } from "./lzma";
import { cacheName } from "./scope";

export interface ReleaseFile {
  readonly path: string;
  readonly sha256: string;
  readonly bytes: number;
  /** Set if only browsers with relaxed SIMD need the file ("relaxed"), or only those without it ("plain"). */
  readonly simd?: "plain" | "relaxed";
}

/** A module with one function, which selects bytes by `i8x16.relaxed_swizzle`. */
const RELAXED_CODE = [
  [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0],
  [10, 15, 1, 13, 0, 65, 1, 253, 15, 65, 2, 253, 15, 253, 128, 2, 11],
].flat();

/** Whether WebAssembly has relaxed SIMD here: products of bytes as the processor has them, which Safari lacks. */
export function hasRelaxedSimd(): boolean {
  return globalThis.WebAssembly?.validate(Uint8Array.from(RELAXED_CODE)) === true;
}

/** Whether this browser needs a file of a release. */
export function isNeeded({ simd }: ReleaseFile): boolean {
  return !simd || (simd === "relaxed") === hasRelaxedSimd();
}

/** What `agridistill app` writes into the page and the service worker. */
export interface Release {
  readonly format: number;
  readonly release: string;
  readonly engine: string;
  readonly built: string;
  readonly name: string;
  readonly files: Readonly<Record<string, ReleaseFile>>;
}

/** A file of the release cannot be had; `offline` if the server does not answer. */
export class ReleaseError extends Error {
  constructor(
    message: string,
    readonly offline = false,
  ) {
    super(message);
  }
}

/** Returns the sha256 in hex, or null where the browser has no hashes: on pages without https. */
export async function sha256(bytes: BufferSource): Promise<string | null> {
  if (!globalThis.crypto?.subtle) return null;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (each) => each.toString(16).padStart(2, "0")).join("");
}

/** Reads files of a release by their logical names, such as "model". */
export class ReleaseFiles {
  /**
   * @param base the page's folder
   * @param progress gets the number of bytes each time that some arrive from the server
   */
  constructor(
    readonly release: Release,
    private readonly base: string,
    private readonly progress: (bytes: number) => void = () => {},
  ) {}

  has(logical: string): boolean {
    return logical in this.release.files;
  }

  url(logical: string): string {
    return new URL(this.entry(logical).path, this.base).href;
  }

  async json(logical: string): Promise<unknown> {
    return JSON.parse(new TextDecoder().decode(await this.bytes(logical)));
  }

  /** Returns the content of a file, unpacked if its name ends with .gz or .lzma. */
  async bytes(logical: string): Promise<Uint8Array<ArrayBuffer>> {
    const { path } = this.entry(logical);
    if (path.endsWith(".lzma")) return this.unpackedOnce(logical);
    const packed = await this.packed(logical);
    return path.endsWith(".gz") ? gunzip(packed) : packed;
  }

  /** Unpacking takes a second or two, so the result stays in the cache of the release. */
  private async unpackedOnce(logical: string): Promise<Uint8Array<ArrayBuffer>> {
    const cache = await this.cache();
    const key = `${this.url(logical)}?unpacked`;
    const found = await cache?.match(key);
    if (found) return new Uint8Array(await found.arrayBuffer());
    const content = unpackLzma(await this.packed(logical));
    await cache?.put(key, new Response(content)).catch(() => undefined);
    return content;
  }

  private async packed(logical: string): Promise<Uint8Array<ArrayBuffer>> {
    const entry = this.entry(logical);
    const cache = await this.cache();
    const url = this.url(logical);
    const cached = await cache?.match(url);
    if (cached) {
      const content = new Uint8Array(await cached.arrayBuffer());
      if ((await sha256(content)) === entry.sha256) return content;
    }
    // A file that an interrupted transfer or a proxy has damaged is fetched again, past the browser's own cache.
    for (const mode of ["default", "reload"] as const) {
      const content = await this.fetched(url, mode);
      const found = await sha256(content);
      if (found === null || found === entry.sha256) {
        // The service worker finds the file here, so a first visit fetches it only once.
        await cache?.put(url, new Response(content)).catch(() => undefined);
        return content;
      }
    }
    throw new ReleaseError(`${logical} is damaged`);
  }

  private async fetched(url: string, mode: RequestCache): Promise<Uint8Array<ArrayBuffer>> {
    let response: Response;
    try {
      response = await fetch(url, { cache: mode });
    } catch {
      throw new ReleaseError(`no answer for ${url}`, true);
    }
    if (!response.ok || !response.body) throw new ReleaseError(`status ${response.status} for ${url}`);
    const reader = response.body.getReader();
    const parts: Uint8Array[] = [];
    let bytes = 0;
    try {
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        parts.push(part.value);
        bytes += part.value.length;
        this.progress(part.value.length);
      }
    } catch {
      throw new ReleaseError(`the transfer of ${url} ended early`, true);
    }
    const content = new Uint8Array(bytes);
    let at = 0;
    for (const part of parts) {
      content.set(part, at);
      at += part.length;
    }
    return content;
  }

  /** Pages without https and some private windows have no caches: then all comes from the server. */
  private async cache(): Promise<Cache | undefined> {
    try {
      return await globalThis.caches?.open(cacheName(this.base, this.release.release));
    } catch {
      return undefined;
    }
  }

  private entry(logical: string): ReleaseFile {
    const found = this.release.files[logical];
    if (!found) throw new ReleaseError(`the release has no file ${logical}`);
    return found;
  }
}

async function gunzip(packed: Uint8Array<ArrayBuffer>): Promise<Uint8Array<ArrayBuffer>> {
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(unpacked).arrayBuffer());
}
