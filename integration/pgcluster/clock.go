package pgcluster

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// clockSource stands between the server and the C library's gettimeofday, from which commit timestamps come: it adds the
// microseconds that stand in a file.
const clockSource = `
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *offset;

__attribute__((constructor)) static void map_offset(void) {
	int fd = open(getenv("PGCLUSTER_CLOCK"), O_RDONLY);
	void *p = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);
	if (fd < 0 || p == MAP_FAILED)
		abort();
	close(fd);
	offset = p;
}

int gettimeofday(struct timeval *tv, void *tz) {
	struct timespec now;
	if (syscall(SYS_clock_gettime, CLOCK_REALTIME, &now) != 0)
		return -1;
	int64_t us = now.tv_sec * INT64_C(1000000) + now.tv_nsec / 1000 + (offset ? *offset : 0);
	tv->tv_sec = us / 1000000;
	tv->tv_usec = us % 1000000;
	return 0;
}
`

func (c *Cluster) clockPath() string { return filepath.Join(c.dir, "clock") }

func (c *Cluster) clockLibrary() string { return filepath.Join(c.dir, "clock.so") }

// makeClock compiles the library that SetClock needs, with gcc.
func (c *Cluster) makeClock() error {
	source := filepath.Join(c.dir, "clock.c")
	if err := os.WriteFile(source, []byte(clockSource), 0o644); err != nil {
		return err
	}
	out, err := exec.Command("gcc", "-O1", "-shared", "-fPIC", "-o", c.clockLibrary(), source).CombinedOutput()
	if err != nil {
		return fmt.Errorf("compile the server's clock: %w\n%s", err, out)
	}
	return os.WriteFile(c.clockPath(), make([]byte, 8), 0o644)
}

// SetClock sets the clock of a server that was started with Options.Clock so far ahead of the machine's, or behind it. It
// steps at once, also while the server runs.
func (c *Cluster) SetClock(ahead time.Duration) error {
	f, err := os.OpenFile(c.clockPath(), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(ahead.Microseconds())), 0)
	return err
}
