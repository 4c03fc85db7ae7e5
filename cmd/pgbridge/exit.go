package main

import (
	"errors"
	"fmt"
	"os/exec"
)

// The exit codes that a supervisor can act on.
const (
	exitDone   = 0
	exitFailed = 1 // try again
	exitUsage  = 2 // wrong flag or configuration: a restart does not help
	exitFound  = 3 // a check ran and found something
	exitFenced = 4 // another bridge has this node: do not restart
)

// exitCode maps an error to an exit code: the one that the error, or one it wraps, asks for by a method
// ExitCode() int; otherwise 1.
func exitCode(err error) int {
	if err == nil {
		return exitDone
	}
	var coded interface{ ExitCode() int }
	if !errors.As(err, &coded) {
		return exitFailed
	}
	if _, child := coded.(*exec.ExitError); child {
		return exitFailed // its code is that of a program we ran, with another meaning
	}
	switch code := coded.ExitCode(); code {
	case exitUsage, exitFound, exitFenced:
		return code
	}
	return exitFailed
}

// usageError is a wrong command line; its one line names the mend.
type usageError struct{ text string }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// Error gives the line.
func (e *usageError) Error() string { return e.text }

// ExitCode is that of wrong usage.
func (e *usageError) ExitCode() int { return exitUsage }
