package config

import (
	"fmt"
	"strings"
)

// Problem is one thing that is wrong in what the operator wrote.
type Problem struct {
	// Place is "file:line", the name of a variable or "--set"; empty when nothing was written.
	Place string
	// Key is the dotted name of the key; empty when the problem is the file itself.
	Key string
	// Text says what is wrong and what would be right. It holds no secret.
	Text string
}

// String gives "place: key: text", in the form that editors can jump to.
func (p Problem) String() string {
	var parts []string
	for _, part := range []string{p.Place, p.Key, p.Text} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, ": ")
}

// Error is everything that is wrong with a configuration, in the order of the file, the environment and
// the table of keys.
type Error struct {
	Problems []Problem // never empty
}

// Error gives one line per problem.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// ExitCode is that of a wrong configuration, 2, which tells a supervisor that a restart will not help.
func (e *Error) ExitCode() int { return 2 }

// problems collects what is wrong.
type problems []Problem

// add appends a problem with a key; its place is filled in by whoever knows it.
func (ps *problems) add(key, format string, args ...any) {
	*ps = append(*ps, Problem{Key: key, Text: fmt.Sprintf(format, args...)})
}

// err returns nil if nothing is wrong.
func (ps problems) err() error {
	if len(ps) == 0 {
		return nil
	}
	return &Error{Problems: ps}
}
