"""The exact engine compiled: C++ sources, the build, and the engine that loads them."""
