//go:build !unix

package main

import "io"

// window knows of no terminal here.
func window(io.Writer) (columns, rows int, ok bool) { return 0, 0, false }
