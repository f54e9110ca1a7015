/** The answers that the phone keeps, in IndexedDB, until the user deletes them. */

import type { Prediction } from "./verdict";

export interface Place {
  readonly latitude: number;
  readonly longitude: number;
  readonly accuracyM: number;
}

export interface Answer extends Omit<Prediction, "probabilities"> {
  readonly id: string;
  /** ISO 8601, UTC. */
  readonly at: string;
  readonly probabilities: Readonly<Record<string, number>>;
  /** The id of the first leaf of the same plant. */
  readonly plant: string;
  readonly place: Place | null;
  /** The first 12 hex digits of the model file's sha256, as in a device's detections. */
  readonly model: string;
  /** The photo's name in an export. */
  readonly photo: string;
}

export interface Kept extends Answer {
  readonly thumbnail: Blob | null;
}

/** "full": the phone has no room. "none": the browser keeps nothing, such as in some private windows. */
export class HistoryError extends Error {
  constructor(readonly problem: "full" | "none") {
    super(problem);
  }
}

const ANSWERS = "answers";
const PHOTOS = "photos";

export class History {
  private constructor(private readonly database: IDBDatabase) {}

  static async open(name: string): Promise<History> {
    try {
      const request = indexedDB.open(name, 1);
      request.onupgradeneeded = () => {
        request.result.createObjectStore(ANSWERS, { keyPath: "id" }).createIndex("at", "at");
        request.result.createObjectStore(PHOTOS);
      };
      const database = await done(request);
      // Another tab with a newer form of the database must not wait for this one.
      database.onversionchange = () => database.close();
      return new History(database);
    } catch {
      throw new HistoryError("none");
    }
  }

  async add(answer: Kept, photo: Blob): Promise<void> {
    await this.write((answers, photos) => {
      answers.add(answer);
      photos.add(photo, answer.id);
    });
  }

  /** Returns all answers, the newest first. */
  async all(): Promise<Kept[]> {
    const index = this.database.transaction(ANSWERS).objectStore(ANSWERS).index("at");
    return (await done<Kept[]>(index.getAll())).reverse();
  }

  async photo(id: string): Promise<Blob | undefined> {
    return done<Blob | undefined>(this.database.transaction(PHOTOS).objectStore(PHOTOS).get(id));
  }

  async remove(id: string): Promise<void> {
    await this.write((answers, photos) => {
      answers.delete(id);
      photos.delete(id);
    });
  }

  async clear(): Promise<void> {
    await this.write((answers, photos) => {
      answers.clear();
      photos.clear();
    });
  }

  /** Both stores change, or neither. */
  private async write(change: (answers: IDBObjectStore, photos: IDBObjectStore) => void): Promise<void> {
    try {
      const transaction = this.database.transaction([ANSWERS, PHOTOS], "readwrite");
      const finished = new Promise<void>((resolve, reject) => {
        transaction.oncomplete = () => resolve();
        transaction.onabort = () => reject(transaction.error);
      });
      change(transaction.objectStore(ANSWERS), transaction.objectStore(PHOTOS));
      await finished;
    } catch (error) {
      throw new HistoryError(error instanceof DOMException && error.name === "QuotaExceededError" ? "full" : "none");
    }
  }
}

function done<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
