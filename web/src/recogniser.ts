/** Runs a predictor in a worker, so that the screen never stops; where no worker starts, in the page itself. */

import { ModelError, type Manifest } from "./manifest";
import { PhotoError, type PhotoProblem } from "./preprocess";
import { Predictor, type Seen } from "./predictor";
import { ReleaseError, ReleaseFiles, type Release } from "./release";

interface Opening {
  readonly release: Release;
  readonly base: string;
}

export interface Opened {
  readonly manifest: Manifest;
  readonly engine: { readonly name: string; readonly threads: number; readonly worker: boolean };
}

type Request = { readonly id: number } & ({ readonly open: Opening } | { readonly see: Blob | ImageBitmap });

type Failure =
  | { readonly kind: "photo"; readonly problem: PhotoProblem }
  | { readonly kind: "release"; readonly message: string; readonly offline: boolean }
  | { readonly kind: "model" | "other"; readonly message: string };

type Reply =
  | { readonly progress: number }
  | { readonly id: number; readonly value: unknown }
  | { readonly id: number; readonly failure: Failure };

export interface Recogniser extends Opened {
  /** Throws a PhotoError if the file is no photo that this browser reads. */
  see(source: Blob | ImageBitmap): Promise<Seen>;
}

const WORKER_START_MS = 10_000;

/**
 * Opens the model of a release.
 *
 * @param progress gets the number of bytes each time that some arrive from the server
 */
export async function openRecogniser(opening: Opening, progress: (bytes: number) => void): Promise<Recogniser> {
  const worker = await startedWorker();
  if (!worker) {
    const predictor = await openPredictor(opening, progress);
    return { ...described(predictor, false), see: (source) => predictor.see(source) };
  }
  const calls = new Map<number, { resolve: (value: unknown) => void; reject: (error: Error) => void }>();
  let last = 0;
  const call = <T>(request: Record<string, unknown>): Promise<T> =>
    new Promise<T>((resolve, reject) => {
      last += 1;
      calls.set(last, { resolve: resolve as (value: unknown) => void, reject });
      worker.postMessage({ id: last, ...request });
    });
  worker.onmessage = ({ data }: MessageEvent<Reply>): void => {
    if ("progress" in data) {
      progress(data.progress);
      return;
    }
    const found = calls.get(data.id);
    calls.delete(data.id);
    if ("failure" in data) found?.reject(asError(data.failure));
    else found?.resolve(data.value);
  };
  worker.onerror = (event): void => {
    for (const each of calls.values()) each.reject(new Error(event.message || "the worker ended"));
    calls.clear();
  };
  const opened = await call<Opened>({ open: opening }).catch((error: unknown) => {
    worker.terminate();
    throw error;
  });
  return { ...opened, see: (source) => call<Seen>({ see: source }) };
}

/** Sees a photo; where the worker cannot decode its format, such as HEIC, an element of the page may. */
export async function seeAnyFormat(recogniser: Recogniser, photo: Blob): Promise<Seen> {
  try {
    return await recogniser.see(photo);
  } catch (error) {
    const bitmap = error instanceof PhotoError && photo.size ? await decodedByElement(photo) : null;
    if (!bitmap) throw error;
    return recogniser.see(bitmap);
  }
}

async function decodedByElement(photo: Blob): Promise<ImageBitmap | null> {
  const image = new Image();
  const url = URL.createObjectURL(photo);
  try {
    image.src = url;
    await image.decode();
    return await createImageBitmap(image);
  } catch {
    return null;
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** The other end: answers requests in the worker. */
export function serveRecogniser(): void {
  let predictor: Predictor | undefined;
  // One photo at a time, because each takes the memory of a decoded photo.
  let turn: Promise<unknown> = Promise.resolve();
  const post = (reply: Reply, moved: Transferable[] = []): void => self.postMessage(reply, { transfer: moved });
  self.onmessage = ({ data }: MessageEvent<Request>): void => {
    turn = turn.then(async () => {
      try {
        if ("open" in data) {
          predictor = await openPredictor(data.open, (bytes) => post({ progress: bytes }));
          post({ id: data.id, value: described(predictor, true) });
        } else {
          const found = await predictor!.see(data.see);
          post({ id: data.id, value: found }, [found.view.data.buffer as ArrayBuffer]);
        }
      } catch (error) {
        post({ id: data.id, failure: asFailure(error) });
      }
    });
  };
  post({ progress: 0 });
}

function openPredictor({ release, base }: Opening, progress: (bytes: number) => void): Promise<Predictor> {
  return Predictor.open(new ReleaseFiles(release, base, progress));
}

function described({ manifest, engine }: Predictor, worker: boolean): Opened {
  return { manifest, engine: { name: engine.name, threads: engine.threads, worker } };
}

/** Returns a worker that has sent its first message, or null if it cannot start, or cannot decode photos. */
async function startedWorker(): Promise<Worker | null> {
  if (typeof Worker === "undefined" || typeof OffscreenCanvas === "undefined") return null;
  try {
    const worker = new Worker(import.meta.url, { type: "module" });
    const started = await new Promise<boolean>((resolve) => {
      worker.onmessage = () => resolve(true);
      worker.onerror = () => resolve(false);
      setTimeout(() => resolve(false), WORKER_START_MS);
    });
    if (started) return worker;
    worker.terminate();
  } catch {
    // A browser without module workers throws.
  }
  return null;
}

function asFailure(error: unknown): Failure {
  if (error instanceof PhotoError) return { kind: "photo", problem: error.problem };
  const message = error instanceof Error ? error.message : String(error);
  if (error instanceof ReleaseError) return { kind: "release", message, offline: error.offline };
  return { kind: error instanceof ModelError ? "model" : "other", message };
}

function asError(failure: Failure): Error {
  if (failure.kind === "photo") return new PhotoError(failure.problem);
  if (failure.kind === "release") return new ReleaseError(failure.message, failure.offline);
  return failure.kind === "model" ? new ModelError(failure.message) : new Error(failure.message);
}
