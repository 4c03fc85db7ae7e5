//go:build unix

package main

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// window is the size of the terminal behind a writer; ok is false if it is none.
func window(w io.Writer) (columns, rows int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile {
		return 0, 0, false
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0, false
	}
	return int(size.Col), int(size.Row), true
}
