"""The exact engine in C++: `src/` is its source, `toolchain` compiles it, `library` loads it."""
