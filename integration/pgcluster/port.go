package pgcluster

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// FreePort picks a TCP port that nobody listens on, below the range from which the kernel serves outgoing connections (32768 on
// Linux): a port out of that range can be taken by any connection while its server is stopped. No other call of FreePort returns it as
// long as this process lives, in whatever process. It is safe for concurrent use.
func FreePort() (int, error) {
	const lowest, highest, attempts = 20000, 32000, 1000
	dir := filepath.Join(os.TempDir(), "pgbridge-ports")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return 0, fmt.Errorf("reserve a port: %w", err)
	}
	for range attempts {
		port := lowest + rand.IntN(highest-lowest)
		if reserve(filepath.Join(dir, strconv.Itoa(port))) != nil {
			continue
		}
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("find a free port in %d to %d: none was found", lowest, highest)
}

// reserve locks a file until this process ends.
func reserve(name string) error {
	fd, err := syscall.Open(name, syscall.O_CREAT|syscall.O_RDWR|syscall.O_CLOEXEC, 0o666)
	if err != nil {
		return err
	}
	if err := syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = syscall.Close(fd)
		return err
	}
	return nil
}
