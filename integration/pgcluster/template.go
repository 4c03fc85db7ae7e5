package pgcluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// templateRecipe is raised whenever initdb is called differently, so that
// templates from before are not used.
const templateRecipe = 1

// template returns the data directory, made by initdb and never started, that
// clusters of this install are copied from. It makes it if it isn't there; a
// lock file keeps two programs from doing so at once.
func template(ctx context.Context, in Install, cache string, acc account) (string, error) {
	hash := fnv.New32a()
	hash.Write([]byte(in.BinDir)) // two builds of one version may differ in their defaults
	dir := filepath.Join(cache, fmt.Sprintf("template-%s-%08x-%d", in.Version, hash.Sum32(), templateRecipe))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", fmt.Errorf("make the template of PostgreSQL %s: %w", in.Version, err)
	}
	unlock, err := lock(filepath.Join(cache, "template.lock"), os.O_CREATE|os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("make the template of PostgreSQL %s: %w", in.Version, err)
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := makeTemplate(ctx, in, dir, acc); err != nil {
		return "", fmt.Errorf("make the template of PostgreSQL %s in %s: %w", in.Version, dir, err)
	}
	return dir, nil
}

// makeTemplate runs initdb beside dir and renames the result, so that dir is
// either whole or not there.
func makeTemplate(ctx context.Context, in Install, dir string, acc account) error {
	part := dir + ".part"
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	if err := acc.mkdir(part, 0o700); err != nil {
		return err
	}
	if err := errors.Join(acc.checkReach(part), acc.checkReach(in.BinDir)); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(in.BinDir, "initdb"), "--pgdata", part, "--username", Superuser,
		"--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync")
	cmd.Dir = part
	cmd.Env = serverEnv()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: acc.credential()}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return os.Rename(part, dir)
}

// lock takes an exclusive lock on a file; flags are as for os.OpenFile. With
// syscall.LOCK_NB as wait it does not wait for it, with 0 it does.
func lock(path string, flags, wait int) (unlock func(), err error) {
	f, err := os.OpenFile(path, flags, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|wait); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return func() { f.Close() }, nil // the lock goes with the descriptor
}

// copyTree copies a data directory for the server's user. Copies share their
// blocks where the file system can do that (copy_file_range).
func copyTree(from, to string, acc account) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if d.IsDir() {
			return acc.mkdir(target, 0o700)
		}
		if err := copyFile(path, target); err != nil {
			return err
		}
		return acc.own(target)
	})
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

// newSystemIdentifier builds an identifier as PostgreSQL does: the time in the
// upper half, something that differs in the lower one.
func newSystemIdentifier() uint64 {
	return uint64(time.Now().Unix())<<32 | uint64(rand.Uint32())
}

// setSystemIdentifier gives a data directory that was shut down cleanly another
// system identifier. It stands in pg_control, and in the first page of each WAL
// segment, which the server compares with it (src/include/catalog/pg_control.h,
// src/include/access/xlog_internal.h).
func setSystemIdentifier(dataDir string, id uint64) error {
	control := filepath.Join(dataDir, "global", "pg_control")
	content, err := os.ReadFile(control)
	if err != nil {
		return fmt.Errorf("set the system identifier: %w", err)
	}
	if err := patchControl(content, func() { binary.NativeEndian.PutUint64(content, id) }); err != nil {
		return fmt.Errorf("set the system identifier in %s: %w", control, err)
	}
	if err := os.WriteFile(control, content, 0o600); err != nil {
		return fmt.Errorf("set the system identifier: %w", err)
	}
	segments, err := filepath.Glob(filepath.Join(dataDir, "pg_wal", "[0-9A-F]*"))
	if err != nil {
		return fmt.Errorf("set the system identifier: %w", err)
	}
	for _, segment := range segments {
		if err := patchSegment(segment, id); err != nil {
			return fmt.Errorf("set the system identifier in %s: %w", segment, err)
		}
	}
	return nil
}

// patchControl lets change change the bytes of a pg_control file. The length of the
// checked part differs between versions: it is the one place where the CRC-32C
// of all that stands before follows.
func patchControl(content []byte, change func()) error {
	table := crc32.MakeTable(crc32.Castagnoli)
	for end := 8; end+4 <= len(content); end += 4 {
		if crc32.Checksum(content[:end], table) != binary.NativeEndian.Uint32(content[end:]) {
			continue
		}
		change()
		binary.NativeEndian.PutUint32(content[end:], crc32.Checksum(content[:end], table))
		return nil
	}
	return errors.New("no checksum found")
}

// patchSegment writes id into the long page header at the start of a WAL
// segment. Page headers carry no checksum.
func patchSegment(path string, id uint64) error {
	const (
		longHeader   = 0x0002 // XLP_LONG_HEADER in xlp_info
		infoOffset   = 2      // of xlp_info
		sysidOffset  = 24     // of xlp_sysid
		headerLength = sysidOffset + 8
	)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	header := make([]byte, headerLength)
	if _, err := io.ReadFull(f, header); err != nil {
		return err
	}
	if binary.NativeEndian.Uint16(header[infoOffset:])&longHeader == 0 {
		return errors.New("the first page has no long header")
	}
	binary.NativeEndian.PutUint64(header[sysidOffset:], id)
	_, err = f.WriteAt(header, 0)
	return err
}
