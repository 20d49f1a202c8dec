package background

import (
	"fmt"
	"runtime/debug"
)

// PanicError is a panic that Guard has caught.
type PanicError struct {
	Value any
	Stack []byte
}

// Error implements error. The stack is part of it, for the log.
func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v\n%s", e.Value, e.Stack) }

// Guard returns f with panics made errors. It is for goroutines that look at the contents of
// images: a fault that one of them triggers must not take the streams of all others with
// it. net/http guards only the goroutines of handlers.
func Guard(f func() error) func() error {
	return func() (err error) {
		defer func() {
			if r := recover(); r != nil {
				err = &PanicError{r, debug.Stack()}
			}
		}()
		return f()
	}
}
