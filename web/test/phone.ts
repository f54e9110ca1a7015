/** As much of a browser's storage as tests need, and the service worker as it is built. */
import { fileURLToPath } from "node:url";
import { buildSync } from "esbuild";
import { vi } from "vitest";

type Stored = Map<string, Response>;

/** Keeps what all pages of one host store, until the test ends. */
export class Origin {
  readonly caches = new Map<string, Stored>();
  readonly settings = new Map<string, string>();
  readonly databases = new Set<string>();

  constructor() {
    vi.stubGlobal("caches", {
      keys: async () => [...this.caches.keys()],
      open: async (name: string) => cacheOf(this.stored(name)),
      delete: async (name: string) => this.caches.delete(name),
      match: async (address: string) => [...this.caches.values()].map((each) => each.get(address)).find(Boolean)?.clone(),
    });
    vi.stubGlobal("localStorage", {
      getItem: (key: string) => this.settings.get(key) ?? null,
      setItem: (key: string, value: string) => this.settings.set(key, value),
    });
    vi.stubGlobal("indexedDB", { open: (name: string) => openRequest(this.databases.has(name)) });
  }

  /** Puts files into a cache; the addresses start with a page's folder. */
  cached(name: string, ...addresses: string[]): void {
    for (const each of addresses) this.stored(name).set(each, new Response("old"));
  }

  private stored(name: string): Stored {
    const found = this.caches.get(name) ?? new Map<string, Response>();
    this.caches.set(name, found);
    return found;
  }
}

function cacheOf(stored: Stored): object {
  return {
    keys: async () => [...stored.keys()].map((url) => ({ url })),
    match: async (address: string) => stored.get(address)?.clone(),
    put: async (address: string, response: Response) => void stored.set(address, response),
  };
}

/** Answers as `indexedDB.open(name)` does: an upgrade that is aborted leaves no database. */
function openRequest(exists: boolean): object {
  const request = {
    result: { close: () => undefined },
    transaction: { abort: () => request.onerror() },
    onerror: () => undefined,
    onsuccess: () => undefined,
    onupgradeneeded: () => undefined,
  };
  queueMicrotask(() => (exists ? request.onsuccess() : request.onupgradeneeded()));
  return request;
}

let built: string | undefined;

/** The service worker of a page with a release of these files, all of them empty; `simd` is as in a release, by path. */
export class Worker {
  private readonly handlers = new Map<string, (event: object) => void>();

  constructor(
    readonly scope: string,
    readonly release: string,
    paths: readonly string[] = [],
    simd: Readonly<Record<string, string>> = {},
  ) {
    const source = fileURLToPath(new URL("../src/sw.ts", import.meta.url));
    built ??= buildSync({ entryPoints: [source], bundle: true, write: false, format: "iife" }).outputFiles[0]!.text;
    const files = Object.fromEntries(paths.map((path) => [path, { path, sha256: EMPTY, bytes: 0, simd: simd[path] }]));
    const self = {
      registration: { scope, installing: null, waiting: null },
      clients: { claim: async () => undefined },
      addEventListener: (type: string, handler: (event: object) => void) => this.handlers.set(type, handler),
    };
    new Function("self", built.replace('"__RELEASE__"', JSON.stringify({ release, files })))(self);
  }

  async send(type: string, rest: object = {}): Promise<void> {
    let until: Promise<unknown> | undefined;
    this.handlers.get(type)!({ ...rest, waitUntil: (promise: Promise<unknown>) => (until = promise) });
    await until;
  }

  /** Returns the worker's answer to a request, or null if it leaves that to the network. */
  async answer(url: string): Promise<Response | null> {
    let answer: Promise<Response> | null = null;
    this.handlers.get("fetch")!({ request: { method: "GET", url }, respondWith: (given: Promise<Response>) => (answer = given) });
    return answer;
  }
}

const EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
