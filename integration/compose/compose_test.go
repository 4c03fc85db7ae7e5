package compose

import (
	"os"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
)

const root = "../.."

// load reads docker-compose.yml as docker compose does. environment stands for
// that of the shell.
func load(t *testing.T) *types.Project {
	t.Helper()
	content, err := os.ReadFile(root + "/docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	project, err := parse(t, content)
	if err != nil {
		t.Fatal(err)
	}
	return project
}

func parse(t *testing.T, content []byte) (*types.Project, error) {
	t.Helper()
	return loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir:  root,
		ConfigFiles: []types.ConfigFile{{Filename: "docker-compose.yml", Content: content}},
		Environment: types.Mapping{},
	}, func(o *loader.Options) { o.SetProjectName("pgbridge", true) })
}

func TestFileIsValid(t *testing.T) {
	project := load(t)
	if got, want := project.ServiceNames(), []string{"bridge-a", "bridge-b", "bridge-c", "pg-a", "pg-b", "pg-c"}; !slices.Equal(got, want) {
		t.Errorf("services %q, want %q", got, want)
	}
	if err := project.ForEachService(nil, func(string, *types.ServiceConfig) error { return nil }); err != nil {
		t.Error(err) // depends_on has no cycle and names services that are there
	}
}

// The loader is the judge of the other tests: it has to see mistakes.
func TestLoaderSeesMistakes(t *testing.T) {
	content, err := os.ReadFile(root + "/docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	for mistake, change := range map[string][2]string{
		"key that does not exist":    {"healthcheck:", "health_check:"},
		"value of the wrong type":    {"retries: 60", "retries: [60]"},
		"volume that is not there":   {"\n  bridge-b:\n  bridge-c:\n", "\n  bridge-c:\n"},
		"config that is not there":   {"source: tables", "source: table"},
		"service that is not there":  {"      pg-b:\n        condition", "      pg-d:\n        condition"},
		"condition that is not one":  {"service_healthy", "service_well"},
		"variable that is not ended": {"cluster: demo", "cluster: ${demo"},
	} {
		t.Run(mistake, func(t *testing.T) {
			wrong := strings.Replace(string(content), change[0], change[1], 1)
			if wrong == string(content) {
				t.Fatalf("%q is not in the file", change[0])
			}
			if _, err := parse(t, []byte(wrong)); err == nil {
				t.Error("passed")
			}
		})
	}
}

func TestPrimariesAreReadyForLogicalDecoding(t *testing.T) {
	project := load(t)
	for _, name := range []string{"pg-a", "pg-b", "pg-c"} {
		service := project.Services[name]
		for _, setting := range []string{"wal_level=logical", "track_commit_timestamp=on"} {
			if !slices.Contains(service.Command, setting) {
				t.Errorf("%s: %s is not in its command %q", name, setting, service.Command)
			}
		}
		if service.HealthCheck == nil || !slices.Contains(service.HealthCheck.Test, "pg_isready") {
			t.Errorf("%s: no pg_isready in its health check", name)
		}
	}
}

func TestBridgeStartsAfterItsPrimaryAndKeepsItsState(t *testing.T) {
	project := load(t)
	for _, node := range []string{"a", "b", "c"} {
		bridge := project.Services["bridge-"+node]
		if got := bridge.DependsOn["pg-"+node].Condition; got != types.ServiceConditionHealthy {
			t.Errorf("bridge-%s: waits for pg-%s with condition %q", node, node, got)
		}
		for variable, want := range map[string]string{
			"PGBRIDGE_NODE":         node,
			"PGBRIDGE_POSTGRES_DSN": "postgres://postgres:change-me@pg-" + node + ":5432/app",
		} {
			if got := bridge.Environment[variable]; got == nil || *got != want {
				t.Errorf("bridge-%s: %s is %v, want %s", node, variable, got, want)
			}
		}
		if len(bridge.Volumes) != 1 || bridge.Volumes[0].Target != "/var/lib/pgbridge" || bridge.Volumes[0].Source != "bridge-"+node {
			t.Errorf("bridge-%s: its data directory is not on a volume of its own: %v", node, bridge.Volumes)
		}
		if bridge.HealthCheck == nil {
			t.Errorf("bridge-%s: no health check", node)
		}
	}
}

func TestNothingIsPublishedBeyondThisMachine(t *testing.T) {
	for name, service := range load(t).Services {
		for _, port := range service.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("%s publishes %s on %q", name, port.Published, port.HostIP)
			}
		}
	}
}

// The Go image must not be older than go.mod asks for: the image does not fetch
// another toolchain.
func TestDockerfileBuildsWithTheGoOfTheModule(t *testing.T) {
	dockerfile := read(t, "Dockerfile")
	version := regexp.MustCompile(`(?m)^go (\S+)$`).FindStringSubmatch(read(t, "go.mod"))
	if version == nil || !strings.Contains(dockerfile, "FROM golang:"+version[1]+"-") {
		t.Errorf("Dockerfile does not build with golang:%s", version[1])
	}
}

// A package of the product that .dockerignore hides would break the build.
func TestDockerignoreLetsEveryPackageThrough(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "-f", "{{if .Module}}{{if .Module.Main}}{{.ImportPath}}{{end}}{{end}}", "./cmd/pgbridge")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("list the packages of cmd/pgbridge: %v", err)
	}
	shown := strings.Fields(read(t, ".dockerignore"))
	for _, importPath := range strings.Fields(string(out)) {
		dir := strings.TrimPrefix(importPath, "github.com/pgbridge/pgbridge/")
		for at := dir; !slices.Contains(shown, "!"+at); at = path.Dir(at) {
			if at == "." {
				t.Errorf(".dockerignore hides %s", dir)
				break
			}
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(root + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
