/** The page's own texts, and the words of the model, in the language that the user reads. */

import { ar } from "./texts/ar";
import { en, type Texts } from "./texts/en";
import { es } from "./texts/es";
import { percentWords, plainLabel } from "./verdict";

interface Language {
  readonly name: string;
  readonly direction: "ltr" | "rtl";
  readonly texts: Texts;
}

/** To add a language, add its file in texts/ and its row here. */
export const LANGUAGES: Readonly<Record<string, Language>> = {
  en: { name: "English", direction: "ltr", texts: en },
  es: { name: "Español", direction: "ltr", texts: es },
  ar: { name: "العربية", direction: "rtl", texts: ar },
};

/** The file words.json, which `agridistill app` makes. */
export interface Words {
  readonly languages: Readonly<Record<string, LanguageWords>>;
}

interface LanguageWords {
  readonly direction: string;
  readonly note: string;
  readonly classes: Readonly<Record<string, { readonly name: string; readonly look: string; readonly warning: string }>>;
}

/** What the page says about a class, with the language in which it says it. */
export interface ClassWords {
  readonly name: string;
  readonly look: string;
  readonly warning: string;
  readonly note: string;
  readonly language: string;
  readonly direction: string;
}

/** Returns the first of the user's languages that the page has. */
export function chosenLanguage(chosen: string, preferred: readonly string[]): string {
  const wanted = [chosen, ...preferred].map((each) => each.split("-")[0]!.toLowerCase());
  return wanted.find((each) => each in LANGUAGES) ?? "en";
}

export class Speech {
  readonly texts: Texts;
  readonly direction: "ltr" | "rtl";

  constructor(
    readonly language: string,
    private readonly words: Words,
  ) {
    ({ texts: this.texts, direction: this.direction } = LANGUAGES[language]!);
  }

  /** Returns a text with its {places} filled. */
  text(key: keyof Texts, values: Readonly<Record<string, string | number>> = {}): string {
    return this.texts[key].replace(/\{(\w+)\}/g, (place, name: string) => {
      const value = values[name];
      return typeof value === "number" ? this.number(value) : (value ?? place);
    });
  }

  number(value: number): string {
    return new Intl.NumberFormat(this.language).format(value);
  }

  percent(probability: number): string {
    const { kind, share } = percentWords(probability);
    const percent = new Intl.NumberFormat(this.language, { style: "percent" }).format(share);
    return kind === "about" ? percent : this.text(kind, { percent });
  }

  date(iso: string): string {
    return new Intl.DateTimeFormat(this.language, { dateStyle: "medium", timeStyle: "short" }).format(new Date(iso));
  }

  /** The words of a class in this language, else in English, else its plain label. */
  classWords(label: string): ClassWords {
    for (const language of [this.language, "en"]) {
      const table = this.words.languages[language];
      const found = table?.classes[label];
      if (table && found) return { ...found, note: table.note, language, direction: table.direction };
    }
    return { name: plainLabel(label), look: "", warning: "", note: "", language: "", direction: "auto" };
  }
}
