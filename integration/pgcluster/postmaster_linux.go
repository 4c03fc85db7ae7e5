package pgcluster

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// childAttr has the kernel stop the server when the program that started it
// dies. SIGQUIT is an immediate shutdown, which leaves no children behind.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}
}

// kill ends the postmaster and its children, and waits for them.
//
// Each child is a session and process group of its own (InitPostmasterChild in
// miscinit.c), so there is no group to kill. The postmaster is stopped first:
// it then forks no more, and its children are a fixed set.
func (p *postmaster) kill() error {
	if err := unix.Kill(p.pid, unix.SIGSTOP); err != nil {
		return p.gone(err)
	}
	if err := unix.Waitid(unix.P_PID, p.pid, nil, unix.WSTOPPED|unix.WNOWAIT, nil); err != nil {
		return p.gone(err)
	}
	children, err := childrenOf(p.pid)
	if err != nil {
		return err
	}
	leftovers := sharedMemory(append(children, p.pid))
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for _, pid := range children {
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return fmt.Errorf("open child %d: %w", pid, err)
		}
		fds = append(fds, fd)
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill child %d: %w", pid, err)
		}
	}
	if err := unix.Kill(p.pid, unix.SIGKILL); err != nil {
		return p.gone(err)
	}
	<-p.done
	for _, fd := range fds {
		if err := awaitEnd(fd); err != nil {
			return err
		}
	}
	for _, path := range leftovers {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// gone turns "no such process" into success, once the end has been noticed.
func (p *postmaster) gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ECHILD) {
		<-p.done
		return nil
	}
	return err
}

// awaitEnd waits until the process behind a pidfd has ended.
func awaitEnd(fd int) error {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// childrenOf lists the processes whose parent is pid.
func childrenOf(pid int) ([]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var children []int
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // ended since
		}
		// pid (name, which may hold anything) state ppid ...
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(fields) < 2 || string(fields[1]) != strconv.Itoa(pid) {
			continue
		}
		child, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return nil, err
		}
		children = append(children, child)
	}
	return children, nil
}

// sharedMemory lists the files in /dev/shm that these processes have mapped. A
// killed server leaves them to its next start, which may never come.
func sharedMemory(pids []int) []string {
	seen := map[string]bool{}
	var paths []string
	for _, pid := range pids {
		maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
		if err != nil {
			continue // ended since
		}
		for line := range strings.Lines(string(maps)) {
			i := strings.Index(line, "/dev/shm/PostgreSQL.")
			if i < 0 {
				continue
			}
			path := strings.TrimSuffix(strings.TrimSpace(line[i:]), " (deleted)")
			if !seen[path] {
				seen[path] = true
				paths = append(paths, path)
			}
		}
	}
	return paths
}

// removeSegment removes the System V segment that holds a killed server's place
// (sysv_shmem.c); its id is the second number on that line of postmaster.pid.
func removeSegment(line string) error {
	fields := strings.Fields(line)
	if len(fields) != 2 {
		return nil
	}
	id, err := strconv.Atoi(fields[1])
	if err != nil {
		return fmt.Errorf("read the shared memory id %q: %w", fields[1], err)
	}
	if _, err := unix.SysvShmCtl(id, unix.IPC_RMID, nil); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove shared memory segment %d: %w", id, err)
	}
	return nil
}
