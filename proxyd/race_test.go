//go:build race

package main

// raceEnabled: the detector takes several times the memory of what it watches.
const raceEnabled = true
