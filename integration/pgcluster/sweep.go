package pgcluster

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

// A directory that Start made of itself is named after ownPrefix and holds the
// file ownLock, locked as long as the program that made it lives.
const (
	ownPrefix = "pgbridge-pg-"
	ownLock   = "owner.lock"
)

// makeOwnDir makes a directory for a cluster in parent. release gives the lock
// up; the end of the program does so too.
func makeOwnDir(parent string) (dir string, release func(), err error) {
	if err := sweep(parent); err != nil {
		return "", nil, err
	}
	if dir, err = os.MkdirTemp(parent, ownPrefix); err != nil {
		return "", nil, err
	}
	release, err = lock(filepath.Join(dir, ownLock), os.O_CREATE|os.O_RDWR, 0)
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	return dir, release, nil
}

// sweep removes the directories that killed programs have left in parent: those
// with a lock that nobody holds and without a server.
func sweep(parent string) error {
	locks, err := filepath.Glob(filepath.Join(parent, ownPrefix+"*", ownLock))
	if err != nil {
		return err
	}
	for _, path := range locks {
		release, err := lock(path, os.O_RDWR, syscall.LOCK_NB) // not O_CREATE: another may just remove it
		if err != nil {
			continue // in use, gone since, or another user's
		}
		dir := filepath.Dir(path)
		_, err = os.Stat(filepath.Join(dir, "data", "postmaster.pid"))
		if errors.Is(err, os.ErrNotExist) {
			err = os.RemoveAll(dir)
		}
		release()
		if err != nil {
			return err
		}
	}
	return nil
}
