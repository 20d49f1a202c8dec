// Package tig stands in for the package of this name in nerdctl's test framework,
// which is a module that is not published. A helper of nerdctl's tests that is
// compiled into its binary, and not called there, names this one type.
package tig

// T is what a test framework offers a helper.
type T interface {
	Helper()
	Fail()
	FailNow()
	Log(args ...any)
	TempDir() string
}
