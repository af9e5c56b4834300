"""Media <-> codes <-> token ids <-> messages. No weights live here."""
