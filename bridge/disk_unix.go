//go:build linux || darwin || freebsd

package bridge

import (
	"fmt"
	"syscall"
)

// roomAt is how many bytes can be written on the file system of a path.
func roomAt(path string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(path, &s); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return int64(s.Bavail) * int64(s.Bsize), nil
}
