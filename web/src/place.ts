import type { Place } from "./history";

const TIMEOUT_MS = 8_000;
const AGE_MS = 60_000;

/** Returns where the phone is, to about a metre; null if it does not know in time or the user refuses. */
export async function findPlace(): Promise<Place | null> {
  if (!("geolocation" in navigator)) return null;
  return new Promise((resolve) => {
    navigator.geolocation.getCurrentPosition(
      ({ coords }) =>
        resolve({
          latitude: Number(coords.latitude.toFixed(5)),
          longitude: Number(coords.longitude.toFixed(5)),
          accuracyM: Math.round(coords.accuracy),
        }),
      () => resolve(null),
      { enableHighAccuracy: true, timeout: TIMEOUT_MS, maximumAge: AGE_MS },
    );
  });
}
