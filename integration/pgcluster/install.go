package pgcluster

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// CacheVariable is the environment variable that overrides CacheDir.
const CacheVariable = "PGBRIDGE_PG_CACHE"

// ErrNotInstalled is returned by Find when no binaries of that major version
// are on this machine.
var ErrNotInstalled = errors.New("not installed")

// Install is one installed PostgreSQL, of which initdb and postgres are known
// to be there.
type Install struct {
	// Major is the major version, such as 18.
	Major int
	// Version is the full version as the server prints it, such as "18.4".
	Version string
	// BinDir is the absolute directory of initdb and postgres, without symbolic
	// links.
	BinDir string
}

// CacheDir is where scripts/postgres.sh puts binaries (<major>/bin) and where
// templates are kept: $PGBRIDGE_PG_CACHE, else /var/cache/pgbridge/pg for root
// (whose home the server's user cannot enter), else pgbridge/pg in the user's
// cache directory. The directory need not exist.
func CacheDir() (string, error) {
	if dir := os.Getenv(CacheVariable); dir != "" {
		return filepath.Abs(dir)
	}
	if os.Geteuid() == 0 {
		return "/var/cache/pgbridge/pg", nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache directory (set %s to name one): %w", CacheVariable, err)
	}
	return filepath.Join(dir, "pgbridge", "pg"), nil
}

// Find returns the installed PostgreSQL of that major version. Binaries in
// CacheDir come first, then those of Debian, Red Hat and Homebrew packages, then
// the ones on PATH. The error wraps ErrNotInstalled and names the mend when
// there are none.
func Find(major int) (Install, error) { return FindWith(major) }

// FindWith is Find for an install that has these server libraries, such as
// "pglogical"; binaries in the cache do not have those of the system's packages.
func FindWith(major int, libraries ...string) (Install, error) {
	cache, err := CacheDir()
	if err != nil {
		return Install{}, err
	}
	for _, dir := range binDirs(cache, strconv.Itoa(major)) {
		if in, err := inspect(dir); err == nil && in.Major == major && in.has(libraries) {
			return in, nil
		}
	}
	if len(libraries) > 0 {
		return Install{}, fmt.Errorf("PostgreSQL %d with %s: %w; install it with the system's packages",
			major, strings.Join(libraries, " and "), ErrNotInstalled)
	}
	return Install{}, fmt.Errorf("PostgreSQL %d: %w; run scripts/postgres.sh %d, or install it with the system's packages",
		major, ErrNotInstalled, major)
}

// has reports whether all libraries are where Debian's and Red Hat's packages,
// or the builds in the cache, have them.
func (in Install) has(libraries []string) bool {
	for _, name := range libraries {
		var found []string
		for _, dir := range []string{"lib", "lib/postgresql"} {
			files, _ := filepath.Glob(filepath.Join(in.BinDir, "..", dir, name+".*")) // fails for a bad pattern only
			found = append(found, files...)
		}
		if len(found) == 0 {
			return false
		}
	}
	return true
}

// Installed returns the newest install of each major version on this machine,
// the highest major version first; nil when there is none.
func Installed() []Install {
	cache, err := CacheDir()
	if err != nil {
		cache = os.DevNull // no cache: the system's packages are still there
	}
	byMajor := map[int]Install{}
	for _, dir := range binDirs(cache, "*") {
		in, err := inspect(dir)
		if err != nil {
			continue
		}
		if _, ok := byMajor[in.Major]; !ok {
			byMajor[in.Major] = in
		}
	}
	var all []Install
	for _, in := range byMajor {
		all = append(all, in)
	}
	slices.SortFunc(all, func(a, b Install) int { return cmp.Compare(b.Major, a.Major) })
	return all
}

// binDirs lists the directories that may hold binaries of a major version ("*"
// for any), the preferred ones first.
func binDirs(cache, major string) []string {
	var dirs []string
	for _, pattern := range []string{
		filepath.Join(cache, major, "bin"),
		"/usr/lib/postgresql/" + major + "/bin",
		"/usr/pgsql-" + major + "/bin",
		"/opt/homebrew/opt/postgresql@" + major + "/bin",
		"/usr/local/opt/postgresql@" + major + "/bin",
	} {
		found, _ := filepath.Glob(pattern) // fails for a bad pattern only: nothing is found then
		dirs = append(dirs, found...)
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			dirs = append(dirs, filepath.Dir(path))
		}
	}
	return dirs
}

// inspect asks the postgres in dir for its version.
func inspect(dir string) (Install, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return Install{}, err
	}
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return Install{}, err
	}
	out, err := exec.Command(filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return Install{}, fmt.Errorf("ask %s/postgres for its version: %w", dir, err)
	}
	// postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)
	m := regexp.MustCompile(`^postgres \(PostgreSQL\) ((\d+)\S*)`).FindStringSubmatch(string(out))
	if m == nil {
		return Install{}, fmt.Errorf("%s/postgres calls itself %q", dir, out)
	}
	major, err := strconv.Atoi(m[2])
	if err != nil {
		return Install{}, fmt.Errorf("%s/postgres calls itself %q: %w", dir, out, err)
	}
	return Install{Major: major, Version: m[1], BinDir: dir}, nil
}
