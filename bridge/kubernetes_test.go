package bridge

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/pgbridge/pgbridge/config"
)

// manifest is as much of deploy/kubernetes/node.yaml as has to fit together.
type manifest struct {
	Kind     string
	Metadata struct{ Name string }
	Data     map[string]string
	Spec     struct {
		ServiceName string `yaml:"serviceName"`
		Replicas    int
		Ports       []struct { // of a service
			TargetPort string `yaml:"targetPort"`
		}
		Template struct {
			Metadata struct{ Labels map[string]string }
			Spec     struct {
				TerminationGracePeriodSeconds int         `yaml:"terminationGracePeriodSeconds"`
				InitContainers                []container `yaml:"initContainers"`
				Containers                    []container
				Volumes                       []struct {
					Name      string
					ConfigMap struct{ Name string } `yaml:"configMap"`
				}
			}
		}
		VolumeClaimTemplates []struct{ Metadata struct{ Name string } } `yaml:"volumeClaimTemplates"`
	}
}

type container struct {
	Name  string
	Args  []string
	Ports []struct {
		Name          string
		ContainerPort int `yaml:"containerPort"`
	}
	VolumeMounts []struct {
		Name      string
		MountPath string `yaml:"mountPath"`
	} `yaml:"volumeMounts"`
	LivenessProbe struct {
		HTTPGet struct{ Path, Port string } `yaml:"httpGet"`
	} `yaml:"livenessProbe"`
}

func (c container) mount(path string) string {
	for _, m := range c.VolumeMounts {
		if m.MountPath == path {
			return m.Name
		}
	}
	return ""
}

// TestKubernetesExample: the configuration is one that the bridge takes, and all that the manifests say twice is the same: ports, volumes,
// the directory of the socket, the settings that PostgreSQL needs. No cluster has run them.
func TestKubernetesExample(t *testing.T) {
	text, err := os.ReadFile("../deploy/kubernetes/node.yaml")
	if err != nil {
		t.Fatal(err)
	}
	services, set, files := map[string][]string{}, manifest{}, map[string]string{}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var m manifest
		err := decoder.Decode(&m)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch m.Kind {
		case "ConfigMap":
			files = m.Data
		case "Service":
			for _, p := range m.Spec.Ports {
				services[m.Metadata.Name] = append(services[m.Metadata.Name], p.TargetPort)
			}
		case "StatefulSet":
			set = m
		default:
			t.Errorf("a %q", m.Kind)
		}
	}
	file := filepath.Join(t.TempDir(), "pgbridge.yaml")
	if err := os.WriteFile(file, []byte(files["pgbridge.yaml"]), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	pod := set.Spec.Template.Spec
	if grace := time.Duration(pod.TerminationGracePeriodSeconds) * time.Second; grace < 2*cfg.ShutdownTimeout || set.Spec.Replicas != 1 {
		t.Errorf("%d pods, stopped within %s", set.Spec.Replicas, grace)
	}
	postgres, bridge := pod.Containers[0], pod.Containers[1]
	ports := map[string]int{}
	for _, c := range pod.Containers {
		for _, p := range c.Ports {
			ports[p.Name] = p.ContainerPort
		}
	}
	for name, addr := range map[string]string{"nats": cfg.NATS.Embedded.Listen, "http": cfg.HTTP.Listen} {
		if _, port, err := net.SplitHostPort(addr); err != nil || port != map[int]string{4222: "4222", 8080: "8080"}[ports[name]] {
			t.Errorf("port %s is %d, and the bridge listens at %s", name, ports[name], addr)
		}
	}
	for name, targets := range services {
		for _, target := range targets {
			if ports[target] == 0 {
				t.Errorf("service %s leads to the port %q, which no container has", name, target)
			}
		}
	}
	if services[set.Spec.ServiceName] == nil || !slices.Contains(services["pgbridge-a"], "nats") {
		t.Errorf("services %v", services)
	}
	there := []string{}
	for _, v := range pod.Volumes {
		there = append(there, v.Name)
		if v.ConfigMap.Name != "" && bridge.mount("/etc/pgbridge") != v.Name {
			t.Error("the configuration is not where the bridge looks for it")
		}
	}
	for _, c := range set.Spec.VolumeClaimTemplates {
		there = append(there, c.Metadata.Name)
	}
	for _, c := range append(pod.InitContainers, pod.Containers...) {
		for _, m := range c.VolumeMounts {
			if !slices.Contains(there, m.Name) {
				t.Errorf("container %s mounts %q, which is no volume", c.Name, m.Name)
			}
		}
	}
	socket := "/var/run/postgresql"
	if !strings.Contains(cfg.Postgres.DSN, "host="+socket) || bridge.mount(socket) == "" || bridge.mount(socket) != postgres.mount(socket) {
		t.Errorf("the bridge looks for the socket by %s", cfg.Postgres.DSN)
	}
	state := bridge.mount("/var/lib/pgbridge")
	if dir := filepath.Dir(cfg.DataDir); bridge.mount(dir) != state || filepath.Dir(cfg.NATS.KeysDir) != dir || pod.InitContainers[0].mount(dir) != state ||
		!strings.Contains(pod.InitContainers[0].Args[0], cfg.DataDir) || !strings.Contains(pod.InitContainers[0].Args[0], cfg.NATS.KeysDir+"/") {
		t.Errorf("data in %s and keys in %s", cfg.DataDir, cfg.NATS.KeysDir)
	}
	for _, setting := range []string{"wal_level=logical", "track_commit_timestamp=on"} {
		if !slices.Contains(postgres.Args, setting) {
			t.Errorf("PostgreSQL runs without %s", setting)
		}
	}
	if p := bridge.LivenessProbe.HTTPGet; p.Path != "/healthz" || p.Port != "http" || bridge.Args[0] != "run" || bridge.Args[2] != bridge.VolumeMounts[0].MountPath+"/pgbridge.yaml" {
		t.Errorf("%v, probed at %+v", bridge.Args, p)
	}
}
