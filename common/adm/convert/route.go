package convert

import (
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
)

// endpoint notes the type of a RuleEndpoint, which becomes no object.
func (c *conversion) endpoint() {
	var spec struct {
		Type       string            `json:"ruleEndpointType"`
		Properties map[string]string `json:"properties"`
	}
	if c.decode("spec", c.at.Fields["spec"], &spec) {
		c.endpoints[c.endpointKey(c.at.Metadata["name"])] = spec.Type
	}
}

func (c *conversion) endpointKey(name any) string {
	namespace, _ := c.at.Metadata["namespace"].(string)
	text, _ := name.(string)
	return namespace + "/" + text
}

// rule makes a Route of a Rule, where there is one that does the same; else it says
// so and leaves the Rule out.
func (c *conversion) rule() {
	var spec struct {
		Source         string            `json:"source"`
		SourceResource map[string]string `json:"sourceResource"`
		Target         string            `json:"target"`
		TargetResource map[string]string `json:"targetResource"`
	}
	meta, ok := c.meta()
	if !ok || !c.decode("spec", c.at.Fields["spec"], &spec) {
		return
	}
	for _, end := range []string{spec.Source, spec.Target} {
		if c.endpoints[c.endpointKey(end)] == "" {
			c.leave("its RuleEndpoint %q is not in the input; add it", end)
			return
		}
	}
	route := &v1beta1.Route{TypeMeta: typeMeta("Route"), ObjectMeta: meta}
	source, target := c.endpoints[c.endpointKey(spec.Source)], c.endpoints[c.endpointKey(spec.Target)]
	switch source + " to " + target {
	case "eventbus to rest":
		ok = c.up(route, spec.SourceResource, spec.TargetResource)
	case "rest to eventbus":
		ok = c.down(route, spec.SourceResource, spec.TargetResource)
	default:
		c.leave("no Route goes from %s to %s", source, target)
		return
	}
	if ok {
		c.add(route)
	}
}

func (c *conversion) leave(format string, args ...any) {
	c.warn("left out: "+format, args...)
}

func (c *conversion) up(route *v1beta1.Route, source, target map[string]string) bool {
	topic, node, to := source["topic"], source["node_name"], target["resource"]
	c.unread("sourceResource", source, "topic", "node_name")
	c.unread("targetResource", target, "resource")
	if node == "" {
		c.leave("it names no node; add node_name to its sourceResource")
		return false
	}
	if problem := wrongTopic(topic, true); problem != "" {
		c.leave("no Route can have the topic %q: %s", topic, problem)
		return false
	}
	if u, err := url.Parse(to); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || len(to) > maxURL {
		c.leave("%q is no URL that begins with http:// or https://; mend resource in its targetResource", to)
		return false
	}
	route.Spec.NodeName = node
	route.Spec.Up = &v1beta1.UpRoute{Topic: topic, HTTP: &v1beta1.HTTPTarget{URL: to}}
	return true
}

func (c *conversion) down(route *v1beta1.Route, source, target map[string]string) bool {
	topic := target["topic"]
	c.unread("sourceResource", source, "path")
	c.unread("targetResource", target, "topic")
	if problem := wrongTopic(topic, false); problem != "" {
		c.leave("no Route can have the topic %q: %s", topic, problem)
		return false
	}
	route.Spec.Down = &v1beta1.DownRoute{Topic: topic}
	namespace := route.Namespace
	if namespace == "" {
		namespace = "NAMESPACE"
	}
	c.warn("whoever posted to the path %s posts to cloudcore's /v1/routes/%s/%s/NODE from now on, with the token of a user who may create routes/messages; the topic is always %s, and nothing of the path is added to it",
		source["path"], namespace, route.Name, topic)
	return true
}

// unread warns of what is said and not used.
func (c *conversion) unread(field string, said map[string]string, read ...string) {
	for _, key := range slices.Sorted(maps.Keys(said)) {
		if !slices.Contains(read, key) {
			c.warn("field spec.%s.%s has no place here and is left out", field, key)
		}
	}
}

// wrongTopic says why a topic, or with wildcards a topic filter, cannot be routed.
func wrongTopic(topic string, wildcards bool) string {
	levels := strings.Split(topic, "/")
	switch {
	case topic == "":
		return "it is empty"
	case len([]rune(topic)) > maxTopic || strings.Contains(topic, "\x00"):
		return "it is too long, or no text"
	case strings.HasPrefix(topic, "$"):
		return "topics that begin with $ belong to the broker and to devices"
	case !wildcards && strings.ContainsAny(topic, "+#"):
		return "a message is published to one topic, without + and #"
	}
	for i, level := range levels {
		if strings.Contains(level, "+") && level != "+" || strings.Contains(level, "#") && (level != "#" || i < len(levels)-1) {
			return "+ stands for one whole level, and # for all at the end"
		}
	}
	return ""
}
