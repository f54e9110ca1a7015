/**
 * The service worker: keeps one release whole on the phone, and answers the page from it alone.
 *
 * A release is installed only if every file is there with its sha256. Until the user taps "update", the release before
 * stays in use; after that, its pages are loaded again. So no page ever mixes two releases.
 */

import { isNeeded, sha256, type Release, type ReleaseFile } from "./release";
import { cacheName, isPageFile, oldCaches } from "./scope";

declare const self: ServiceWorkerGlobalScope;

const release = "__RELEASE__" as unknown as Release;
const scope = self.registration.scope;
const name = cacheName(scope, release.release);
const INDEX = "index.html";
// They hold the release itself, so the release cannot hold their hashes.
const OUTSIDE = [INDEX, "sw.js"];
const files = Object.entries(release.files)
  .filter(([logical]) => !OUTSIDE.includes(logical))
  .map(([, file]) => file);
const byPath = new Map(files.map((file) => [file.path, file]));
const needed = files.filter(isNeeded);
const TYPES: Readonly<Record<string, string>> = {
  html: "text/html; charset=utf-8",
  js: "text/javascript",
  mjs: "text/javascript",
  css: "text/css",
  json: "application/json",
  webmanifest: "application/manifest+json",
  png: "image/png",
  svg: "image/svg+xml",
  wasm: "application/wasm",
};

function addressOf(path: string): string {
  return new URL(path, scope).href;
}

async function isWhole(response: Response, file: ReleaseFile): Promise<Uint8Array<ArrayBuffer> | null> {
  const content = new Uint8Array(await response.arrayBuffer());
  return (await sha256(content)) === file.sha256 ? content : null;
}

/** Puts a file into the release's cache: from there, from the cache of another release, or from the server. */
async function take(cache: Cache, file: ReleaseFile): Promise<Uint8Array<ArrayBuffer>> {
  const address = addressOf(file.path);
  // `caches.match` looks through all caches, those of older releases first.
  for (const found of [await cache.match(address), await caches.match(address)]) {
    const content = found && (await isWhole(found, file));
    if (content) {
      await cache.put(address, new Response(content));
      return content;
    }
  }
  for (const mode of ["default", "reload"] as const) {
    const response = await fetch(address, { cache: mode });
    const content = response.ok ? await isWhole(response, file) : null;
    if (content) {
      await cache.put(address, new Response(content));
      return content;
    }
  }
  throw new Error(`${file.path} of release ${release.release} cannot be had`);
}

/** The page of this release; the server may already have that of the next. */
async function takeIndex(cache: Cache): Promise<void> {
  const response = await fetch(scope, { cache: "no-cache" });
  const text = await response.text();
  const stated = /<script[^>]*\bid="release"[^>]*>(.*?)<\/script>/s.exec(text)?.[1];
  if (!response.ok || !stated || (JSON.parse(stated) as Release).release !== release.release) {
    throw new Error(`the page of release ${release.release} cannot be had`);
  }
  await cache.put(addressOf(INDEX), new Response(text));
}

async function install(): Promise<void> {
  const cache = await caches.open(name);
  for (const file of needed) await take(cache, file);
  await takeIndex(cache);
  // The worker of another release may have dropped the cache meanwhile, or the browser may have, for want of storage.
  const stored = new Set((await (await caches.open(name)).keys()).map(({ url }) => url));
  const missing = [INDEX, ...needed.map(({ path }) => path)].find((path) => !stored.has(addressOf(path)));
  if (missing) throw new Error(`${missing} of release ${release.release} was dropped again`);
}

/** Drops the caches of the page's other releases, unless one of them is about to be installed. */
async function tidy(): Promise<void> {
  if (self.registration.installing || self.registration.waiting) return;
  for (const each of await caches.keys()) {
    if (each.startsWith(cacheName(scope)) && each !== name) await caches.delete(each);
  }
}

/** Drops caches from before names had a path, if they are this page's alone. */
async function dropOld(): Promise<void> {
  for (const [each, share] of await oldCaches(scope)) if (share === 1) await caches.delete(each);
}

async function answer(path: string, request: Request): Promise<Response> {
  if (path === "release.json") return answered(JSON.stringify(release), path);
  const cache = await caches.open(name);
  const isIndex = path === "" || path === INDEX;
  const found = await cache.match(addressOf(isIndex ? INDEX : path));
  if (found) return answered(found.body, isIndex ? INDEX : path);
  const file = byPath.get(path);
  // Browsers clear caches when storage is short. A file that comes again has the same hash, so nothing gets mixed.
  if (file) return answered(await take(cache, file).catch(() => null), path);
  // The server's page names files of its own release only; without a page there is no release to mix them with.
  const isCleared = !(await cache.match(addressOf(INDEX)));
  return isIndex || isCleared ? fetch(request) : answered(null, path);
}

function answered(body: BodyInit | null, path: string): Response {
  const headers = {
    "Content-Type": TYPES[path.split(".").at(-1)!] ?? "application/octet-stream",
    // Only isolated pages may run WebAssembly in several threads.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
  };
  return new Response(body, { status: body === null ? 404 : 200, headers });
}

self.addEventListener("install", (event) => event.waitUntil(install()));
self.addEventListener("activate", (event) => event.waitUntil(tidy()));
self.addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  const place = url.split(/[?#]/)[0]!;
  if (method !== "GET" || !place.startsWith(scope)) return;
  const path = place.slice(scope.length);
  // Other files may lie beside the page, and other pages below it: the network has them.
  if (byPath.has(path) || isPageFile(path)) event.respondWith(answer(path, event.request));
});
self.addEventListener("message", (event: ExtendableMessageEvent) => {
  const message = event.data as { readonly type?: string; readonly release?: string };
  if (message.type === "update") event.waitUntil(self.skipWaiting());
  if (message.type === "release") event.ports[0]?.postMessage(release.release);
  if (message.type === "hello" && message.release === release.release) {
    // A page's first visit: from now on its requests are answered here as well.
    // Old caches go only now: until the page has begun, they tell it whose the old history is.
    event.waitUntil(Promise.all([self.clients.claim(), tidy(), dropOld()]));
  }
});
