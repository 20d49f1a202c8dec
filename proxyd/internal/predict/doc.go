// Package predict guesses, from an image alone, in which order a container that
// starts from it reads its files.
//
// It is what the order of sending rests on until traces of real starts are
// known. It does by static reading what the kernel, the dynamic linker and the
// usual interpreters do at run time:
//
//   - the program of Entrypoint and Cmd, found through PATH and symlinks;
//   - the interpreters of its "#!" chain, and the words of shell scripts that
//     name files or programs;
//   - the ELF interpreter and the needed libraries, breadth first as ld.so
//     loads them: of large files first the headers, relocations and data that
//     loading touches, and their code after all else that the start reads;
//   - what every runtime reads from /etc;
//   - the modules that Node, Python and Ruby programs load, in their order; what
//     functions import, and what is loaded on first use, comes after that;
//   - what a JVM reads of its home, and the archives of its class path;
//
// then the working directory and web roots, the program's own directories, tables of
// megabytes in ELF files, everything else, and at last what a running program hardly ever
// opens: documentation, translations, headers, static libraries, tests, and what ELF
// files have for debuggers.
//
// Images are hostile input. Everything read is bounded by [Limits]; what does
// not parse is skipped, never an error: a bad guess costs time, not correctness.
package predict
