/** What belongs to this page: pages of one host share an origin, and with it all that a browser stores. */

/** The name of every page's history and settings before names had the page's path. */
const OLD = "agridistill";
/** The setting with the path of the one page that goes on with the old history. */
const HEIR = "agridistill heir";
const OLD_CACHE = "release-";
const PAGE_FILE = /^(|index\.html|release\.json|app\.webmanifest|files\/[0-9a-f]{16}-[^/]+)$/;

/** Returns the address of the open page's folder. */
export function pageFolder(): string {
  return new URL(".", document.baseURI).href;
}

/** Returns the name of a page's settings and history, and the beginning of its caches' names. */
export function ownName(folder: string): string {
  return `agridistill ${new URL(folder).pathname}`;
}

/** The name of a page's cache for a release; a path has no space, so no page's names begin with those of another. */
export function cacheName(folder: string, release = ""): string {
  return `${ownName(folder)} ${release}`;
}

/** Whether a path below a page's folder is one of `agridistill app`'s files; others may lie beside them. */
export function isPageFile(path: string): boolean {
  return PAGE_FILE.test(path);
}

/** The caches from before names had a path, with the share of their entries that are this page's: 0 to 1. */
export async function oldCaches(folder: string): Promise<Map<string, number>> {
  const shares = new Map<string, number>();
  for (const name of globalThis.caches ? await caches.keys() : []) {
    if (!name.startsWith(OLD_CACHE)) continue;
    const addresses = (await (await caches.open(name)).keys()).map(({ url }) => url.split("?")[0]!);
    const own = addresses.filter((each) => each.startsWith(folder) && isPageFile(each.slice(folder.length)));
    if (addresses.length) shares.set(name, own.length / addresses.length);
  }
  return shares;
}

/** Returns the name of the page's history: the page that goes on with the old one leaves it in its place. */
export function historyName(folder: string): string {
  try {
    if (localStorage.getItem(HEIR) === new URL(folder).pathname) return OLD;
  } catch {
    // Closed: then nothing was taken over.
  }
  return ownName(folder);
}

/**
 * Decides once whether this page goes on with the history and settings from before names had a path; returns whether
 * it has just taken them over.
 *
 * Nobody can tell whose the old answers are, so one page gets them all: the first that opens, unless only other pages
 * have an old cache. The history stays under its old name, because what is not moved cannot be lost on the way. The
 * settings are copied.
 */
export async function takeOver(folder: string): Promise<boolean> {
  try {
    if (localStorage.getItem(ownName(folder)) !== null) return false;
    const isHeir = await mayInherit(folder);
    if (isHeir) localStorage.setItem(HEIR, new URL(folder).pathname);
    localStorage.setItem(ownName(folder), (isHeir && localStorage.getItem(OLD)) || "{}");
    return isHeir;
  } catch {
    // A browser that keeps no settings keeps no history either.
    return false;
  }
}

async function mayInherit(folder: string): Promise<boolean> {
  if (localStorage.getItem(HEIR) !== null || !(await hasDatabase(OLD))) return false;
  const shares = [...(await oldCaches(folder)).values()];
  return !shares.length || shares.some((share) => share > 0);
}

/** Not every browser has `indexedDB.databases`; opening would create a database, so that is undone. */
function hasDatabase(name: string): Promise<boolean> {
  return new Promise((resolve) => {
    const request = indexedDB.open(name);
    request.onupgradeneeded = () => request.transaction!.abort();
    request.onerror = () => resolve(false);
    request.onsuccess = () => {
      request.result.close();
      resolve(true);
    };
  });
}
