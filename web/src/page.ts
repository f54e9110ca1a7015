/** The page: takes photos, shows and keeps what the model says about them. */

import { byId, make } from "./elements";
import { photoName } from "./exporting";
import { History, HistoryError, type Kept } from "./history";
import { HistoryView } from "./historyView";
import { chosenLanguage, LANGUAGES, Speech, type Words } from "./language";
import { ModelError } from "./manifest";
import { drawMap, drawPixels, thumbnailOf } from "./overlay";
import { findPlace } from "./place";
import { MOST_LEAVES, pooled } from "./pooling";
import type { Seen } from "./predictor";
import { PhotoError } from "./preprocess";
import { openRecogniser, type Recogniser } from "./recogniser";
import { ReleaseError, ReleaseFiles, type Release } from "./release";
import { plantView, resultView } from "./resultView";
import { checkedAddress, send } from "./sending";
import { readSettings, writeSettings } from "./settings";
import type { Texts } from "./texts/en";
import { followUpdates } from "./updates";
import type { Prediction } from "./verdict";

type Message = readonly [keyof Texts, Readonly<Record<string, string | number>>?];

/** A module of one function that needs 128-bit SIMD, as the engine does. */
const SIMD_MODULE = Uint8Array.of(
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11,
); // prettier-ignore
const WAITED_FILES = ["model", "model.json"];
const RUNTIME = "runtime/";
const MODEL_ID_DIGITS = 12;

class Page {
  private readonly settings = readSettings();
  private words: Words = { languages: {} };
  private speech = this.speechOf();
  private recogniser: Promise<Recogniser>;
  private arrived = 0;
  private history: History | null = null;
  private historyView: HistoryView | null = null;
  private plant: { id: string; leaves: Prediction[] } = { id: "", leaves: [] };
  private shown: { seen: Seen; classes: readonly string[] } | null = null;
  private status: Message | null = ["loading"];
  private isProblem = false;
  /** What holds until the page closes, and what concerns the last photo. */
  private readonly lasting: Message[] = [];
  private note: Message[] = [];
  private busy = 0;
  private turn: Promise<unknown> = Promise.resolve();

  constructor(
    readonly release: Release,
    private readonly base: string,
  ) {
    this.recogniser = this.opened();
    this.connect();
    this.draw();
    void this.begin();
  }

  async see(photo: Blob): Promise<Seen> {
    return seen(await this.recogniser, photo);
  }

  async engine(): Promise<Recogniser["engine"]> {
    return (await this.recogniser).engine;
  }

  private async begin(): Promise<void> {
    const words = new ReleaseFiles(this.release, this.base).json("words.json");
    this.words = await words.then((found) => found as Words).catch(() => this.words);
    this.speech = this.speechOf();
    try {
      this.history = await History.open();
      this.historyView = new HistoryView(this.history, this.speech);
    } catch {
      this.lasting.push(["error_none"]);
    }
    this.draw();
    // The files of the model come first: the service worker finds them in the cache then, and fetches none twice.
    await this.recogniser.catch(() => undefined);
    const canKeep = await followUpdates(this.release, {
      ready: (take) => {
        byId("update-bar").hidden = false;
        byId("update").onclick = take;
      },
    });
    if (canKeep) return;
    this.lasting.push(["error_noOffline"]);
    this.drawNote();
  }

  private async opened(): Promise<Recogniser> {
    this.arrived = 0;
    try {
      if (!globalThis.DecompressionStream || !globalThis.WebAssembly?.validate(SIMD_MODULE)) {
        throw new UnsupportedError();
      }
      const recogniser = await openRecogniser({ release: this.release, base: this.base }, (bytes) => {
        this.arrived += bytes;
        this.drawProgress();
      });
      this.setStatus(["ready"]);
      this.drawAbout(recogniser);
      return recogniser;
    } catch (error) {
      this.setStatus([problemOf(error, "error_model")], true);
      throw error;
    }
  }

  private connect(): void {
    const language = byId<HTMLSelectElement>("language");
    for (const [code, { name }] of Object.entries(LANGUAGES)) language.append(make("option", name, { value: code, lang: code }));
    language.value = this.speech.language;
    language.onchange = () => {
      this.settings.language = language.value;
      writeSettings(this.settings);
      this.speech = this.speechOf();
      this.draw();
    };
    for (const [id, isLeaf] of [["photo-input", false], ["gallery-input", false], ["leaf-input", true]] as const) {
      const input = byId<HTMLInputElement>(id);
      input.onchange = () => {
        const file = input.files?.[0];
        // Emptied, so that the same photo can be chosen again.
        if (file) void this.take(file, isLeaf).finally(() => (input.value = ""));
      };
    }
    byId("photo-input").addEventListener("cancel", () => {
      if (!this.busy) this.setStatus(["error_camera"], true);
    });
    const toggle = byId("map-toggle");
    toggle.onclick = () => {
      const map = byId("map");
      map.hidden = !map.hidden;
      toggle.setAttribute("aria-pressed", String(!map.hidden));
    };
    this.connectSettings();
  }

  private connectSettings(): void {
    const [place, sending] = [byId<HTMLInputElement>("place"), byId<HTMLInputElement>("send")];
    const [address, status] = [byId<HTMLInputElement>("address"), byId("settings-status")];
    [place.checked, sending.checked, address.value] = [this.settings.place, this.settings.send, this.settings.address];
    place.onchange = async () => {
      this.settings.place = place.checked;
      writeSettings(this.settings);
      status.textContent = place.checked && !(await findPlace()) ? this.speech.text("placeNone") : "";
    };
    sending.onchange = address.onchange = () => {
      const checked = checkedAddress(address.value);
      const isMissing = checked === null && (sending.checked || address.value !== "");
      status.textContent = isMissing ? this.speech.text("sendNoAddress") : "";
      sending.checked &&= checked !== null;
      this.settings.address = checked ?? "";
      this.settings.send = sending.checked;
      writeSettings(this.settings);
    };
    const install = byId("install");
    addEventListener("beforeinstallprompt", (event) => {
      event.preventDefault();
      install.hidden = false;
      install.onclick = () => {
        install.hidden = true;
        void (event as Event & { prompt(): Promise<void> }).prompt();
      };
    });
  }

  /** One photo after the other; a second one that comes meanwhile waits. */
  private take(file: Blob, isLeaf: boolean): Promise<void> {
    this.busy += 1;
    const turn = this.turn.then(() => this.judge(file, isLeaf)).finally(() => (this.busy -= 1));
    this.turn = turn;
    return turn;
  }

  private async judge(file: Blob, isLeaf: boolean): Promise<void> {
    this.note = [];
    this.drawNote();
    const id = randomId();
    const at = new Date().toISOString();
    const place = this.settings.place ? findPlace() : Promise.resolve(null);
    try {
      const recogniser = await this.reopened();
      this.setStatus(["looking"]);
      const found = await seen(recogniser, file);
      if (!isLeaf || this.plant.leaves.length >= MOST_LEAVES) this.plant = { id, leaves: [] };
      this.plant.leaves.push(found.prediction);
      this.shown = { seen: found, classes: recogniser.manifest.classes };
      this.setStatus(null);
      this.drawShown();
      byId("card").scrollIntoView({ block: "start" });
      const { classes, weights_sha256 } = recogniser.manifest;
      const { probabilities, ...rest } = found.prediction;
      await this.keep(
        {
          ...rest,
          id,
          at,
          probabilities: Object.fromEntries(classes.map((name, i) => [name, probabilities[i]!])),
          plant: this.plant.id,
          place: await place,
          model: weights_sha256.slice(0, MODEL_ID_DIGITS),
          photo: photoName(at, id, file.type),
          thumbnail: await thumbnailOf(byId<HTMLCanvasElement>("seen")),
        },
        file,
      );
    } catch (error) {
      this.setStatus([problemOf(error, "error_other")], true);
    }
  }

  private async keep(answer: Kept, photo: Blob): Promise<void> {
    if (this.settings.place && !answer.place) this.tell(["placeNone"]);
    try {
      await this.history?.add(answer, photo);
      await this.historyView?.refresh();
      // Without this a browser may clear the history when storage is short.
      await navigator.storage?.persist?.().catch(() => false);
    } catch (error) {
      this.tell([error instanceof HistoryError && error.problem === "full" ? "error_full" : "error_none"]);
    }
    const { send: isOn, address } = this.settings;
    if (!isOn || !address) return;
    const failure = await send(address, answer, photo);
    this.tell(failure ? ["sendFailed", { address, reason: failure }] : ["sent", { address }]);
  }

  /** Tries once more to open a model that could not be opened. */
  private async reopened(): Promise<Recogniser> {
    try {
      return await this.recogniser;
    } catch {
      this.setStatus(["loading"]);
      this.recogniser = this.opened();
      return this.recogniser;
    }
  }

  private speechOf(): Speech {
    return new Speech(chosenLanguage(this.settings.language, navigator.languages), this.words);
  }

  private setStatus(status: Message | null, isProblem = false): void {
    [this.status, this.isProblem] = [status, isProblem];
    this.drawStatus();
  }

  private tell(message: Message): void {
    this.note.push(message);
    this.drawNote();
  }

  private draw(): void {
    const { speech } = this;
    document.documentElement.lang = speech.language;
    document.documentElement.dir = speech.direction;
    for (const each of document.querySelectorAll<HTMLElement>("[data-text]")) {
      each.textContent = speech.text(each.dataset["text"] as keyof Texts);
    }
    byId("seen").setAttribute("aria-label", speech.text("seenAlt"));
    byId("map").setAttribute("aria-label", speech.text("mapAlt"));
    this.drawStatus();
    this.drawShown();
    this.drawNote();
    void this.recogniser.then((recogniser) => this.drawAbout(recogniser)).catch(() => undefined);
    void this.historyView?.refresh(speech);
  }

  private drawStatus(): void {
    const status = byId("status");
    status.replaceChildren();
    if (!this.status) return;
    const text = make("p", this.speech.text(...this.status), this.isProblem ? { class: "problem", "data-testid": "problem" } : {});
    status.append(text);
    if (this.status[0] !== "loading") return;
    status.append(make("progress", "", { max: String(this.awaitedBytes()), "aria-label": this.speech.text("loading") }));
    this.drawProgress();
  }

  private drawProgress(): void {
    const bar = byId("status").querySelector("progress");
    if (bar && this.arrived) bar.value = this.arrived;
  }

  private awaitedBytes(): number {
    const awaited = Object.entries(this.release.files).filter(
      ([logical]) => WAITED_FILES.includes(logical) || logical.startsWith(RUNTIME),
    );
    return awaited.reduce((sum, [, { bytes }]) => sum + bytes, 0);
  }

  private drawShown(): void {
    const { shown, speech } = this;
    byId("card").hidden = byId("another").hidden = !shown;
    if (!shown) return;
    const { prediction, view, attention } = shown.seen;
    drawPixels(byId<HTMLCanvasElement>("seen"), view);
    byId("map-toggle").hidden = !attention;
    if (attention) drawMap(byId<HTMLCanvasElement>("map"), attention);
    else byId("map").hidden = true;
    byId("result").replaceChildren(...resultView(prediction, shown.classes, speech));
    const { leaves } = this.plant;
    const plant = byId("plant");
    plant.hidden = leaves.length < 2;
    plant.replaceChildren(...(leaves.length < 2 ? [] : plantView(leaves.length, pooled(leaves, shown.classes), speech)));
    if (leaves.length >= MOST_LEAVES) plant.append(make("p", speech.text("plantFull", { most: MOST_LEAVES })));
  }

  private drawNote(): void {
    byId("note").replaceChildren(...[...this.lasting, ...this.note].map((message) => make("p", this.speech.text(...message))));
  }

  private drawAbout({ manifest, engine }: Recogniser): void {
    const threads = engine.threads > 1 ? ` × ${engine.threads}` : "";
    byId("about").textContent = this.speech.text("about", {
      model: `${manifest.model} ${manifest.weights_sha256.slice(0, MODEL_ID_DIGITS)}`,
      release: this.release.release,
      engine: engine.name + threads,
    });
  }
}

class UnsupportedError extends Error {}

/** Where the worker cannot decode a format, such as HEIC, an element of the page may. */
async function seen(recogniser: Recogniser, photo: Blob): Promise<Seen> {
  try {
    return await recogniser.see(photo);
  } catch (error) {
    const bitmap = error instanceof PhotoError && photo.size ? await asElement(photo) : null;
    if (!bitmap) throw error;
    return recogniser.see(bitmap);
  }
}

async function asElement(photo: Blob): Promise<ImageBitmap | null> {
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

function problemOf(error: unknown, otherwise: keyof Texts): keyof Texts {
  if (error instanceof PhotoError) {
    const texts = { heic: "error_heic", unreadable: "error_unreadable", "too large": "error_tooLarge", empty: "error_empty" } as const;
    return texts[error.problem];
  }
  if (error instanceof ReleaseError) return error.offline ? "error_offline" : "error_damaged";
  if (error instanceof UnsupportedError) return "error_old";
  return error instanceof ModelError ? "error_model" : otherwise;
}

/** 32 hex digits; `crypto.randomUUID` exists only on pages with https. */
function randomId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (each) => each.toString(16).padStart(2, "0")).join("");
}

export async function startPage(): Promise<void> {
  const release = JSON.parse(byId("release").textContent) as Release;
  const page = new Page(release, new URL(".", document.baseURI).href);
  // For tests and for the curious; README.md describes it.
  Object.assign(window, {
    agridistill: {
      release: release.release,
      engine: () => page.engine(),
      see: (photo: Blob) => page.see(photo),
      predict: async (photo: Blob): Promise<Prediction> => (await page.see(photo)).prediction,
    },
  });
}
