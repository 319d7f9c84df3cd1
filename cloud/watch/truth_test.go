package watch

import (
	"fmt"
	"math/rand/v2"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// truth is a cluster's store as an apiserver's: every change has the next version,
// and any state of the past can be asked for.
type truth struct {
	version int
	nodes   []string
	history []change // history[i] made version i+1 of this truth's first version
	first   int
	uids    int
	moves   bool // objects go from one node to another
}

// change is one change: of a pod of a node, gone or as it is from then on.
type change struct {
	key  string
	pod  *corev1.Pod
	gone bool
}

func newTruth(nodes int) *truth {
	t := &truth{version: 5, first: 5}
	for i := range nodes {
		t.nodes = append(t.nodes, "node-"+strconv.Itoa(i))
	}
	return t
}

// at is what there was at a version: pods by key.
func (t *truth) at(version int) map[string]*corev1.Pod {
	pods := make(map[string]*corev1.Pod)
	for _, c := range t.history[:version-t.first] {
		if c.gone {
			delete(pods, c.key)
		} else {
			pods[c.key] = c.pod
		}
	}
	return pods
}

// of is what a node had at a version: resource versions by key.
func (t *truth) of(node string, version int) map[string]string {
	has := make(map[string]string)
	for key, p := range t.at(version) {
		if p.Spec.NodeName == node {
			has[key] = p.ResourceVersion
		}
	}
	return has
}

// step changes something.
func (t *truth) step(r *rand.Rand) {
	now := t.at(t.version)
	key := "shop/pod-" + strconv.Itoa(r.IntN(8))
	was := now[key]
	t.version++
	c := change{key: key}
	switch {
	case was == nil:
		t.uids++
		c.pod = &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: key[len("shop/"):], UID: types.UID("uid-" + strconv.Itoa(t.uids))},
			Spec:       corev1.PodSpec{NodeName: t.nodes[r.IntN(len(t.nodes))]},
		}
	case r.IntN(3) == 0:
		c.pod, c.gone = was.DeepCopy(), true
	default:
		c.pod = was.DeepCopy()
		c.pod.Labels = map[string]string{"changed": strconv.Itoa(t.version)}
	}
	if t.moves && !c.gone && r.IntN(3) == 0 {
		c.pod.Spec.NodeName = t.nodes[r.IntN(len(t.nodes))]
	}
	c.pod.ResourceVersion = strconv.Itoa(t.version)
	t.history = append(t.history, c)
}

// restore goes back to an earlier state, with a history of its own from there.
func (t *truth) restore(version int) {
	t.history = t.history[:version-t.first]
	t.version = version
}

func say(version int) string { return strconv.Itoa(version) }

func number(version string) int {
	n, err := strconv.Atoi(version)
	if err != nil {
		panic(fmt.Sprintf("%q is no version of this truth", version))
	}
	return n
}
