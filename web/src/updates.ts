/** Registers the service worker, and offers the next release when it is whole. */

import type { Release } from "./release";

const LOOK_AGAIN_MS = 3_600_000;

export interface Updates {
  /** Called when the next release is ready; `take` reloads all open pages with it. */
  readonly ready: (take: () => void) => void;
}

/** Returns false where pages cannot be kept: without https, and in some private windows. */
export async function followUpdates(release: Release, updates: Updates): Promise<boolean> {
  const container = navigator.serviceWorker as ServiceWorkerContainer | undefined;
  if (!container || !globalThis.caches) return false;
  container.addEventListener("controllerchange", () => void reloadIfOther(container, release));
  try {
    const registration = await container.register("sw.js", { updateViaCache: "none" });
    const offer = (): void => {
      const { waiting } = registration;
      if (waiting && registration.active) updates.ready(() => waiting.postMessage({ type: "update" }));
    };
    offer();
    registration.addEventListener("updatefound", () => registration.installing?.addEventListener("statechange", offer));
    registration.installing?.addEventListener("statechange", offer);
    void container.ready.then(({ active }) => {
      active?.postMessage({ type: "hello", release: release.release });
    });
    let looked = Date.now();
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState !== "visible" || Date.now() - looked < LOOK_AGAIN_MS) return;
      looked = Date.now();
      // Without a network there is nothing new.
      registration.update().catch(() => undefined);
    });
    return true;
  } catch {
    return false;
  }
}

async function reloadIfOther(container: ServiceWorkerContainer, release: Release): Promise<void> {
  const { controller } = container;
  if (!controller) return;
  const channel = new MessageChannel();
  const running = await new Promise<string>((resolve) => {
    channel.port1.onmessage = ({ data }) => resolve(String(data));
    controller.postMessage({ type: "release" }, [channel.port2]);
  });
  if (running !== release.release) location.reload();
}
