package pgcluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account is the system user that a server runs as. The zero value is the
// present user.
type account struct {
	name     string
	uid, gid int
	other    bool // not the present user: files need a chown, processes a credential
}

// serverAccount returns the present user, or for root postgres or nobody, since
// PostgreSQL refuses to run as root.
func serverAccount() (account, error) {
	if os.Geteuid() != 0 {
		return account{}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errUID := strconv.Atoi(u.Uid)
		gid, errGID := strconv.Atoi(u.Gid)
		if err := errors.Join(errUID, errGID); err != nil {
			return account{}, fmt.Errorf("read the ids of user %q: %w", name, err)
		}
		return account{name: name, uid: uid, gid: gid, other: true}, nil
	}
	return account{}, errors.New("PostgreSQL refuses to run as root, and there is neither a user postgres " +
		"nor nobody; create one, or run this as another user")
}

// credential is what a process of that user is started with; nil for the
// present user.
func (a account) credential() *syscall.Credential {
	if !a.other {
		return nil
	}
	return &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
}

// own gives a file or directory to the user.
func (a account) own(path string) error {
	if !a.other {
		return nil
	}
	return os.Lchown(path, a.uid, a.gid)
}

// mkdir makes a directory that belongs to the user, with its missing parents
// readable for all.
func (a account) mkdir(path string, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(path, mode); err != nil {
		return err
	}
	return a.own(path)
}

// checkReach says which directory on the way to path is closed to the user.
func (a account) checkReach(path string) error {
	if !a.other {
		return nil
	}
	for dir := path; ; dir = filepath.Dir(dir) {
		st, err := os.Stat(dir)
		if err != nil {
			return err
		}
		bit := fs.FileMode(0o001)
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			switch {
			case int(sys.Uid) == a.uid:
				bit = 0o100
			case int(sys.Gid) == a.gid:
				bit = 0o010
			}
		}
		if st.IsDir() && st.Mode()&bit == 0 {
			return fmt.Errorf("directory %s is closed to user %q, which runs PostgreSQL because PostgreSQL refuses root; "+
				"choose another place (TMPDIR, %s)", dir, a.name, CacheVariable)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}
