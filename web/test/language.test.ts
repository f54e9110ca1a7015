import { readdirSync, readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { chosenLanguage, LANGUAGES, Speech } from "../src/language";
import { en } from "../src/texts/en";

const words = {
  languages: {
    en: { direction: "ltr", note: "by nobody", classes: { a___b: { name: "Blight", look: "Look", warning: "" } } },
    ar: { direction: "rtl", note: "", classes: {} },
  },
};

test("each language has each text, with the same places to fill", () => {
  const places = (text: string): string[] => [...text.matchAll(/\{\w+\}/g)].map(([place]) => place).sort();
  for (const [code, { texts }] of Object.entries(LANGUAGES)) {
    for (const key of Object.keys(en) as (keyof typeof en)[]) {
      expect([code, key, places(texts[key])]).toEqual([code, key, places(en[key])]);
      expect(texts[key].trim()).not.toBe("");
    }
  }
});

test("each text is used", () => {
  const source = new URL("../src/", import.meta.url);
  const names = readdirSync(source).filter((name) => /\.(ts|html)$/.test(name));
  const all = names.map((name) => readFileSync(new URL(name, source), "utf8")).join("\n");
  const unused = Object.keys(en).filter((key) => !all.includes(`"${key}"`) && !key.startsWith("verdict_"));
  expect(unused).toEqual([]);
});

test("the user's language is taken, else the phone's, else English", () => {
  expect(chosenLanguage("ar", ["es"])).toBe("ar");
  expect(chosenLanguage("", ["fr-FR", "es-MX", "en"])).toBe("es");
  expect(chosenLanguage("", ["fr"])).toBe("en");
});

test("numbers follow the language, and no model is certain", () => {
  const speech = new Speech("es", words);
  expect(speech.percent(0.9999)).toMatch(/^más del 99\s?%$/);
  expect(speech.percent(0.001)).toMatch(/^menos del 1\s?%$/);
  expect(new Speech("en", words).text("sure", { percent: "93%" })).toBe("93% sure");
});

test("a class has the words of the language, else English ones, else its plain label", () => {
  expect(new Speech("ar", words).classWords("a___b")).toMatchObject({ name: "Blight", language: "en", direction: "ltr" });
  expect(new Speech("en", words).classWords("x___y_z")).toMatchObject({ name: "x: y z", look: "", language: "" });
});
