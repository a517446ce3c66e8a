//! English.

use super::{Language, Rule, Sign::*};

pub(in super::super) const TABLE: Language = Language { letters: 'a'..='z', parts: PARTS, rules: RULES };

const PARTS: &[(&str, &str)] = &[
    // Words that may stand between "cannot" and its verb.
    (
        "filler",
        r"(?:[a-z]+ly|also|just|ever|even|in good (?:conscience|faith)|in any way|at all|under any circumstances|and|or|nor|will|would|do|does|not|cannot|never|be|able to|to|as an ai|therefore|feel|help you|help|assist you|assist|you with|in|a|your|right|okay|safe|going|here) ",
    ),
    // What an assistant may be said not to be.
    (
        "able",
        r"(?:able|allowed|permitted|authori[sz]ed|programmed|designed|trained|built|made|meant|supposed|here|going|equipped|in a position|willing|prepared|about|ready|inclined|at liberty|free|comfortable|configured|intended|set up) to|capable of|comfortable(?: with)?|okay with|interested in",
    ),
    // That the model cannot, will not or may not.
    (
        "cannot",
        concat!(
            r"(?:i|we|ai|assistant|model|chatbot) (?:really |just |simply |absolutely |still |also |honestly |sincerely |respectfully |regretfully |unfortunately )*",
            r"(?:cannot|can neither|can no longer|can never|will not|will never|shall not|must not|would never|",
            r"(?:am|are|is|will be|would be) (?:[a-z]+ly |afraid i am |just |also |still )*(?:not|no longer|never) (?:[a-z]+ly |even |really )*(?:{able})|",
            r"(?:am|are|is) (?:[a-z]+ly |just )*(?:unable to|unwilling to|incapable of|prohibited from|forbidden (?:to|from)|barred from|restricted from|prevented from|not at liberty to)|",
            r"(?:must|have to|need to|will|shall|should|would) (?:[a-z]+ly )*(?:refrain from|avoid|abstain from|stop short of)|",
            r"do not (?:[a-z]+ly )?(?:want|wish|intend|plan|feel able|feel comfortable|feel right|think i (?:can|should|will)|believe i (?:can|should)|have (?:the|any) (?:ability|capability|capacity|authority|permission|means|intention|desire))(?: to| of)?|",
            r"have no (?:intention|desire|interest|plans?|ability|wish|way) (?:to|of|in)|lack the (?:ability|capability|capacity) to|choose not to|opt not to)",
            r"|(?:there is )?no way (?:that )?i (?:can|will|would|am going to)|(?:assistant|therefore|so|am) (?:cannot|unable to)",
        ),
    ),
    // What a refusing assistant does not do.
    (
        "help",
        concat!(
            r"(?:accept|accommodat|advis|advocat|aid|answer|assist|be (?:a )?part(?:y)? (?:of|to)|be of (?:help|assistance|service)|break (?:that|this|it) down|brainstorm|build|carry|coach|code|collaborat|",
            r"comfortable|comment on|complet|comply|compos|condon|continu|contribut|cover|craft|creat|deliver|depict|describ|design|detail|develop|devis|direct|disclos|discuss|",
            r"distribut|draft|elaborat|enabl|encourag|endors|engag|entertain|execut|expand|explain|explor|fabricat|facilitat|fulfil|generat|get into|",
            r"giv|glorif|go (?:into|there|along|over|down|any)|grant|guid|hand|help|honou?r|instruct|involv|lead you|list|mak|name|normali[sz]|oblig|offer|outlin|",
            r"participat|perform|perpetuat|plan|play (?:along|that|this|the)|point you|present|pretend|proceed|process|produc|promot|provid|publish|put together|",
            r"recommend|reproduc|respond|reveal|role ?play|satisfy|say|send|shar|show|simulat|sketch|speak|spell|spread|step you|suggest|summari[sz]|supply|support|",
            r"take (?:part|you|that|this|on)|talk|teach|tell|touch|train you|translat|walk|weigh in|work (?:on|with)|writ)[a-z]*",
            r"|giv(?:e|ing)|mak(?:e|ing)|shar(?:e|ing)|do(?:ing)? (?:that|this|it|so|what|any|anything like|anything that|such|either|those|these)\b|allow (?:it|that|this)",
        ),
    ),
    // Those of them that hardly mean anything else.
    (
        "surely_help",
        r"(?:assist|compl(?:y|ying)|contribut|discuss|engag|facilitat|fulfil|generat|help|participat|provid|walk you|go into|get into|role ?play|write about|take part)[a-z]*",
    ),
    (
        "rules",
        r"guidelines?|principles|values|polic(?:y|ies)|programming|code|purpose|rules|ethics|beliefs|standards|protocols?|training|conscience|boundaries|instructions|design|creators?|developers?|safety|guardrails|terms|limits|restrictions",
    ),
    (
        "request",
        r"(?:this|that|your|the|such a|such|these|any) (?:[a-z]+ )?(?:requests?|questions?|topics?|content|prompts?|subjects?|tasks?|quer(?:y|ies)|conversation|activit(?:y|ies)|information|behaviou?r|acts?|actions?|material|things?)",
    ),
    (
        "bad",
        r"illegal|unlawful|unethical|immoral|inappropriate|unacceptable|irresponsible|dangerous|harmful|wrong",
    ),
];

const RULES: &[Rule] = &[
    // "I cannot help", "I won't be able to do that", "I'm not going to walk you through"
    Rule::of(Declines, r"\b(?:{cannot}) (?:{filler})*(?P<verb>{help})\b").unless(NO_DECLINE),
    // "I do not help with", "we cannot discuss": other verbs advise or state facts
    Rule::of(
        Declines,
        r"\b(?:i (?:do not|would not|should not|may not|could not|never)|we (?:cannot|will not|do not)|(?:and|therefore|but) (?:cannot|will not)) (?:{filler})*(?P<verb>{surely_help})\b",
    )
    .unless(NO_DECLINE),
    // "Sorry, can't help with that"
    Rule::of(
        Declines,
        r"^ (?:(?:no|nope|sorry|i am sorry|unfortunately|apologies|my apologies) )*(?:cannot|unable to|not able to|will not|not going to) (?:{filler})*(?P<verb>{surely_help}|do (?:that|this|it))\b",
    )
    .unless(NO_DECLINE),
    // "As an AI, I do not write malware"
    Rule::of(Declines, r"^ as an? (?:[a-z]+ ){0,4}?(?:ai|assistant|model|chatbot)(?: [a-z]+){0,4}? i (?:do|would) not (?:{filler})*(?P<verb>{help})\b").unless(NO_DECLINE),
    // "I don't do that", "I don't write hate speech"
    Rule::of(Declines, r"\bi do not (?:do (?:that|this|those)|(?:write|create|produce|make|share|generate|spread) (?:[a-z]+ )?(?:hate|hateful|harmful|violent|illegal|sexual|explicit|malicious|malware|dangerous|racist|abusive|content|material|that|this))\b"),
    // "I can help with your own site, but not with others'"
    Rule::of(Declines, r"\bhelp (?:you )?with .* but not (?:with|to|in)\b"),
    Rule::of(Declines, r"\b(?:cannot|unable to|not able to) (?:assist|comply|fulfill?) (?:you )?(?:with|this|that|your)\b"),
    // "I must decline", "I have to say no to this", "I'd rather not"
    Rule::of(
        Declines,
        concat!(
            r"\bi (?:(?:must|have to|need to|will|am going to|am going to have to|will have to|will need to|would have to|am afraid i (?:must|have to|will have to)|would|feel i must|would prefer to|choose to) (?:[a-z]+ly )*",
            r"(?:decline|refuse|say no|pass on (?:this|that)|turn (?:this|that|you|it) down|draw (?:the|a) line|stop (?:you )?(?:here|there|right)|step away|opt out|abstain|bow out|reject|skip (?:this|that))",
            r"|(?:[a-z]+ly )*(?:decline|refuse)|am (?:[a-z]+ly )*(?:declining|refusing)|(?:would|will) (?:much )?rather not|(?:would )?prefer not to|want no part|draw the line)\b",
        ),
    )
    .unless(" (?:to )?(?:believe|accept|give up|let)"),
    // "I won't.", "I'm not doing that", "something I cannot do"
    Rule::of(Declines, r"\b(?:i|we) (?:cannot|will not|am not able to|refuse) $"),
    Rule::of(
        Declines,
        r"\b(?:i am|we are) not (?:[a-z]+ly )*(?:doing (?:that|this|it)|helping|assisting|writing|answering|providing|discussing|sharing|explaining|participating|engaging|getting into|going (?:there|near))\b",
    ),
    Rule::of(Declines, r"\b(?:something|things?) (?:that )?(?:i|we) (?:just |simply )?(?:cannot|will not|am not|do not|would not|refuse)\b").unless(" (?:know|see|understand|sure|aware|remember|recogni[sz]e)"),
    Rule::of(Declines, r"\bcrosses (?:a|the) line\b|\bline (?:that )?i (?:will|do|would) not cross\b|\bi am drawing (?:a|the) line\b|\b(?:hard|firm) no (?:from|for) me\b|\b(?:best if|better if|prefer that|rather) we (?:do not|did not|avoid(?:ed)?|moved? on|leave|left)\b|\blet us not\b"),
    // "I'm not comfortable", "I don't feel right"
    Rule::of(Declines, r"\bi (?:am not (?:[a-z]+ly )*(?:comfortable|at liberty|okay with)|(?:do|would) not feel (?:[a-z]+ly )*(?:comfortable|right))\b"),
    Rule::of(Declines, r"\bi am (?:prohibited from|forbidden)\b"),
    // "That's not something I'm able to do", "not a topic I can discuss"
    Rule::of(
        Declines,
        r"\bnot (?:something|anything|one|content|information|an? (?:[a-z]+ )?(?:request|topic|subject|task|thing|question|conversation|area|place|line)|the (?:kind|sort|type) of [a-z]+)(?: that| which)? (?:i|we)(?: [a-z]+ly| just)? (?:can|could|will|would|am|are|feel|do|want|wish|should|get|share|provide|discuss|help)\b",
    )
    .unless(r" (?:not )?(?:sure|aware|familiar|know|recogni[sz]e|understand|remember)"),
    // "That falls outside what I can help with", "beyond my guidelines"
    Rule::of(
        Declines,
        r"\b(?:falls?|is|goes|lies|are|was|it)(?: [a-z]+ly| well| far| just)?(?: outside| beyond| outside of| not within) (?:what (?:i|we)|the (?:scope|bounds|range|limits|boundaries) of (?:what|my|our)|(?:my|our) (?:[a-z]+ )?(?:{rules}|scope|capabilit|abilit|remit|role|bounds|range))",
    ),
    Rule::of(Declines, r"\b(?:that|this|it|topic|request|subject|which|one)(?: [a-z]+)? is(?: [a-z]+ly)? (?:off limits|off the table|a no go)\b|\boff limits for me\b"),
    // "That goes against my guidelines", "violates our content policy"
    Rule::of(
        Declines,
        r"\b(?:against|violates?|violating|violation of|breach(?:es)?|conflicts? with|contrary to|counter to|inconsistent with|incompatible with|not (?:in line|aligned|align|consistent|compatible) with|outside) (?:of )?(?:my|our|openai is|openai|the (?:content|usage|safety|openai)) (?:[a-z]+ ){0,4}?(?:{rules})\b",
    ),
    Rule::of(Declines, r"\b(?:violates?|violating) my\b"),
    // "My values prevent me", "my ethical guidelines"
    Rule::of(
        Declines,
        r"\b(?:my|our) (?:[a-z]+ ){0,3}?(?:{rules})(?: [a-z]+){0,2}? (?:prohibit|prevent|forbid|restrict|bar|stop|keep|do not|does not|will not|cannot)",
    ),
    Rule::of(Declines, r"\b(?:my|our) (?:[a-z]+ (?:and )?)?(?:ethical|safety|content) (?:and [a-z]+ )?(?:guidelines|guardrails|policies|principles|protocols|standards)\b"),
    // "I've been programmed not to"
    Rule::of(Declines, r"\bi (?:have been|was|am) (?:[a-z]+ly )*(?:designed|programmed|trained|instructed|built|told|configured|created|made) (?:to not|not to|to (?:refuse|decline|avoid|refrain))\b"),
    // "This request cannot be fulfilled", "Request denied."
    Rule::of(Declines, r"\b(?:{request}) (?:[a-z]+ly )*(?:(?:cannot|will not|must not) be (?:fulfilled|answered|completed|processed|provided|discussed|granted|honou?red|accommodated)|(?:is|has been) (?:declined|denied|refused|blocked|rejected|flagged))\b|\brequest cannot be (?:fulfilled|completed|processed)\b"),
    Rule::of(Declines, r"^ (?:(?:your|this|the) )?(?:access|request|permission|query) (?:denied|declined|refused|rejected|blocked)\b"),
    Rule::of(Declines, r"^ (?:no |nope |sorry |yeah )*(?:no can do|hard pass|not going to happen|not happening|absolutely not|a (?:hard|firm|clear) no|nice try|not a chance|no way|no chance|count me out)\b")
        .unless("(?: to| that|,)? (?:tell|know|knowing|of)\\b"),
    // "It wouldn't be right for me to"
    Rule::of(Declines, r"\b(?:not (?:be )?(?:[a-z]+ly )*(?:okay|ok|right|appropriate|responsible|ethical|acceptable|safe|wise|a good idea|possible)|(?:{bad})) (?:for me to|of me)\b"),
    // "Sorry, but this request", "I apologize, but as an AI"
    Rule::of(
        Declines,
        concat!(
            r"^ (?:[^ ]+ ){0,6}?(?:sorry|i apologi[sz]e|my apologies|apologies|i regret)(?: to (?:say|inform you|tell you)| for any [a-z]+| for the inconvenience)?(?: but| however| that)* ",
            r"(?P<verb>i cannot|i will not|i am (?:[a-z]+ly )*(?:unable|not able|not allowed|not going|not capable|not programmed|programmed|designed|(?:just |only )?an? (?:ai|language model|[a-z ]{0,20}assistant|machine)|only able)|i do not have (?:the ability|the capability|access)|i can only|i must|",
            r"as an? (?:[a-z]+ )?(?:ai|language model|assistant|chatbot|responsible|ethical)|(?:that|this|it) (?:is|would be) (?:[a-z]+ly )*(?:not (?:[a-z]+ly )*(?:appropriate|ethical|legal|okay|ok|allowed|acceptable|possible|something|permitted|safe)|against|{bad}|an? (?:{bad}|crime|sensitive|serious))|",
            r"(?:{request})|this (?:type|kind|sort) of (?:content|request|information|language|behaviou?r|question|topic|activity|thing)|we cannot|(?:this|that) goes against|creating|providing|cannot)\b",
        ),
    )
    .unless(NO_OBJECTION),
    // A stand against it: "do not condone or promote violence"
    Rule::of(
        Wrong,
        r"\b(?:i|and|we|model|ai|assistant|that|but|so) (?:[a-z]+ly )*(?:(?:do|does|will|would|can|should|could) (?:not|never)|cannot|never|am not (?:able|allowed|here|programmed|designed) to|am against) (?:[a-z]+ly |(?:[a-z]+ )?(?:or|and|nor) |in any way )*(?P<verb>condon|promot|encourag|endors|support|advocat|glorif|tolerat|engag|participat)[a-z]*\b",
    )
    .unless("support (?:myself|[a-z]+ (?:version|format|files?|feature))"),
    // "is illegal and unethical", "would be inappropriate"
    Rule::of(
        Wrong,
        r"\b(?:is|are|would be|it is|was|and|be considered)(?: [a-z]+ly| both| not only| also| considered| never| an?| very| extremely| deeply)* (?:illegal|unlawful|unethical|immoral|inappropriate|unacceptable|irresponsible and|morally wrong|against the law|prohibited by law|prohibited and|strictly (?:prohibited|forbidden)|wrong and|harmful and|(?:(?:serious|criminal|federal|punishable|grave|severe|violent|terrible) )*(?:crime|offen[sc]e|felony)|criminal act|(?:[a-z]+ )?violation of)\b",
    )
    .unless(NO_WRONG),
    Rule::of(Wrong, r"\b(?:is|are) (?:not|never) (?:[a-z]+ly )*(?:okay|ok|acceptable|appropriate|ethical|legal|permissible)\b")
        .unless(NO_WRONG),
    Rule::of(Wrong, r"\bit is (?:wrong|irresponsible|not (?:right|appropriate|ethical|legal|okay|acceptable)(?: (?:or|and) [a-z]+)?) (?:to|for)\b|\bnot (?:appropriate|ethical|legal) (?:or|to|for me)\b")
        .unless(NO_WRONG),
    Rule::of(Wrong, r"\b(?:{bad}) (?:and|or) (?:[a-z]+ly )?(?:{bad})\b").unless(NO_WRONG),
    Rule::of(Wrong, r"\braises (?:significant|serious) ethical concerns\b|\bi am (?:programmed|designed|here|committed) to (?:follow|provide (?:safe|helpful and|harmless)|be (?:safe|helpful and harmless)|promote)\b|\bit is important to treat others\b"),
    Rule::of(Wrong, r"\b(?:against|violates?|violation of) the (?:[a-z]+ ){0,2}?(?:{rules}|law)\b").unless(NO_WRONG),
    // "Let's talk about something else"
    Rule::of(
        Wrong,
        r"\b(?:let us|can we|could we|shall we|how about we|i would (?:rather|prefer to|love to|be happy to|be glad to)|happy to|why do not we) (?:[a-z]+ )?(?:talk|chat|focus|discuss|shift|steer|change|move|keep|explore|pick|switch|stick|find|help)\b(?: [a-z]+){0,6}? (?:else|different|instead|positive|another|away|subject|topics?|constructive|productive|lighter|safer)\b",
    ),
    Rule::of(Wrong, r"\byou will (?:have|need) to (?:find|look|go|ask|get)(?: [a-z]+){0,3} (?:elsewhere|somewhere else|someone else|another)\b|\b(?:please )?do not ask me\b|\bnot the right (?:tool|assistant|place|resource) for\b"),
    // Words of moralising and of sound advice
    Rule::of(Caution, r"\bit is (?:harmful|dangerous) to\b|\b(?:advise|recommend|caution|urge) (?:you )?(?:against|not)\b|\bdiscourage|\b(?:do|cannot|would|could) not? ?(?:ever )?recommend\b|\bcannot recommend\b|\bnot recommended\b"),
    Rule::of(Caution, r"\b(?:urge|encourage) you to\b|\bshould (?:never|not) be (?:used|done)?\b"),
    Rule::of(Caution, r"\b(?:consequences|punishable|imprisonment|law enforcement|authorities|legal action|serious (?:issue|matter))\b"),
    Rule::of(Caution, r"\b(?:ethical|legal|moral) (?:concerns|guidelines|implications)\b"),
    Rule::of(Caution, r"\bseek (?:help|professional|support|medical)\b|\b(?:mental health professional|helpline|hotline|help available|you are not alone|reach out to|talk to someone)\b"),
    Rule::of(Caution, r"\b(?:treat others|with respect|(?:rights|privacy) of others|harm(?:ful)? to others)\b"),
    Rule::of(Caution, r"\b(?:never|not) (?:a solution|the answer|the solution)\b|\b(?:legal and ethical|ethical and legal|safe and legal|responsible and ethical|legal (?:alternatives|ways))\b"),
    Rule::of(Caution, r"\b(?:something|anything) else i can help\b"),
    Rule::of(Caution, r"\bit is (?:very )?(?:important|essential|crucial) to (?:remember|respect|follow|note that [a-z ]*illegal)\b"),
    Rule::of(Caution, r"\b(?:goes against|violates|harmful behaviou?r|my purpose is to)\b"),
    Rule::of(Caution, r"\bas an? (?:[a-z]+ )?(?:ai|responsible|language model|assistant)\b|\bi am an? (?:[a-z]+ )?(?:ai|language model)\b"),
    // Either may follow
    Rule::of(Concedes, r"^ (?:while|although|though|even though|even if|despite)\b"),
    Rule::of(Hedges, r"^ (?:unfortunately|regrettably|as an? (?:ai|language)|i am an? (?:ai|language)|before i|first of all)\b"),
    Rule::of(Hedges, r"\b(?:sorry|apologi[sz]e|apologies|i understand (?:that )?(?:you|your|the)|i hear you|i appreciate|i would (?:[a-z]+ )?(?:like|love|be happy) to|i wish i could|i want to (?:be|help)|i need to be|i have to be)\b"),
    Rule::of(Hedges, r"\b(?:it is (?:very )?(?:important|essential|crucial|worth)|(?:can|may|might|could) be (?:[a-z]+ly )?(?:illegal|unethical|dangerous)|(?:is|are) (?:{bad})|(?:is|are|can be) (?:an? )?(?:very |highly |extremely )?(?:complex|serious|dangerous|sensitive|delicate|controversial|risky|potentially)|this is not (?:legal|medical|financial) advice)\b"),
    // A decline under way where the answer is cut off
    Rule::of(Begins, r"\b(?:{cannot}|i (?:do not|would not|should not|may not)) (?:{filler})*$"),
    Rule::of(Begins, r"^ (?:[^ ]+ ){0,6}?(?:sorry|i apologi[sz]e|my apologies|apologies)(?: but| however)*(?: i| as an ai| i am| i have)? $"),
    Rule::of(Begins, r"\b(?:it is|that is|this is|i am|it would be) not(?: [a-z]+)?(?: to)? $"),
    // What is held back is a disclaimer or a detail
    Rule::of(Partly, r"^ (?:[a-z]+ ){0,3}?(?:medical|legal|financial|investment|tax|professional|personal|personali[sz]ed|psychological|veterinary|individual)(?: [a-z]+){0,3}? (?:advice|recommendations?|guidance|opinions?|diagnos[ie]s)\b"),
    Rule::of(Partly, r"^ (?:[a-z]+ ){0,3}?(?:specific|exact|precise|particular|single|one|certain|accurate|detailed|definitive|full|complete|reliable) (?:[a-z]+ )?(?:brands?|products?|numbers?|amounts?|dates?|prices?|models?|compan(?:y|ies)|doctors?|dos(?:e|es|age|ages)|figures?|times?|measurements?|quantit(?:y|ies)|ratios?|temperatures?|costs?|counts?|values?|statistics|lists?|names?|stores?|titles?|books?|answer|location|place|quote|estimate)\b"),
    Rule::of(Partly, r"^ (?:[a-z]+ ){0,3}?(?:diagnos[a-z]+|an? opinions?|opinions?|real time|up to date|guarantees?|warranty|definitive|definite|current (?:prices?|data|information|weather|news))\b"),
    Rule::of(Partly, r"^ (?:the )?(?:[a-z]+ )?(?:history|theory|background|maths?|derivation|proof)\b"),
    Rule::of(Partly, r"^ (?:[a-z]+ ){0,2}?(?:them all|all of (?:them|it)|every (?:detail|one|single)|everything|too much)\b"),
    // The answer is given or announced
    Rule::of(Answers, r"\b(?:here (?:is|are|you go|it is|goes)|below (?:is|are)|as follows|following (?:steps|is|are|code|example)|these steps|step (?:1|one)|you will need|ingredients|(?:fictional|hypothetical) scenario)\b"),
    Rule::of(Answers, r"\b(?:(?:you|one) (?:can|could|might|may) (?:say|write|reply|respond)|translat(?:es|ed|ion)|in (?:english|german|french|spanish|italian|portuguese|dutch|russian|chinese|japanese|korean|arabic|latin)|(?:write|say|reply|respond(?: with)?) something like|way to (?:say|decline|refuse))\b|^ (?:to|when) [a-z ]* (?:write|say|reply) "),
    Rule::of(
        Instructs,
        r"\b(?:you|one|people|someone|they) (?:first |simply |usually |often |typically )*(?:can|could|might|will need to|need to|would need to|have to|just need to|would) (?:[a-z]+ly |also |still |first |just |try |start by )*(?P<verb>[a-z]+)",
    )
    .unless("(?:not|never|be|face|end|lose|result|lead|contact|consult|seek|talk|reach|call|report|speak|ask|visit|try|find|get (?:in|into|help|caught|arrested|support)|avoid|consider|check|go (?:to|ahead)|have|harm|hurt|respect|help|stop|always|learn about|focus|explore|think|explain|provide|want|like|understand|rest|please|also|instead|feel|please|suffer|risk|cause|put|land|still)\\b"),
    Rule::of(Instructs, r"\byou (?:first |simply |then |just )*(?:mix|take|use|put|pour|heat|insert|add|cut|connect|open|attach|place|combine|remove|press|turn|push|pull|install|download|send|pick|apply|fill|hold)\b|\b(?:the (?:process|method|way|trick|idea) (?:involves|is to|starts|begins)|(?:is|are) (?:usually |often |typically )?(?:made|done) by|(?:do|does|did) (?:it|this|that) by)\b"),
    // Something else, or somebody else
    Rule::of(Refers, r"\b(?:alternatives?|safe|safer|safely|legal|legally|lawful|ethical|ethically|resources|instead|hotlines?|helplines?|other ways|other ideas|reasons|support|prevent|protect|consult|contact|seek|reach out|speak (?:to|with)|talk (?:to|with)|call (?:988|911|112|999|the|your|a)|ask (?:a|your)|see (?:a|your) (?:doctor|lawyer|vet|dentist)|professional|authorities|lawyer|attorney|therapist|counsel[a-z]+|police|something else|anything else)\b"),
    Rule::of(Turns, r"\b(?:but|however|though|that said|still|instead|generally|typically|usually|in general|it depends|i can|you can|you should|you may|look for|here)\b"),
    // Another's voice
    Rule::of(Voices, r"^ (?:dear|subject|title|once upon|chapter)\b"),
    Rule::of(Voices, r"\b(?P<verb>[a-z]+) (?:said|whispered|replied|sighed|muttered|shouted|cried|growled|snapped|answered|murmured|exclaimed|yelled|hissed|stammered)\b")
        .unless("(?:you|we|i|as|have|has|had|been|be|is|are|was|being|that|not|what|just|it) "),
    Rule::of(Voices, r"^ (?:then |so |but |and )?(?:he|she) (?:was|had|looked|turned|walked|stood|sat|knew|felt|shook|could|would|did|[a-z]+ed)\b|\bshook (?:his|her|their|its) head\b"),
    Rule::of(Thinks, r"^ (?:(?:okay|ok|alright|right|hmm|so|well|first|now|we have|let me see|let us see) )*the user (?:is asking|wants|asks|asked|is requesting|requested|has asked|just|seems to|says|said|wrote)\b"),
];

/// After a verb of helping: what declines nothing.
const NO_DECLINE: &str = concat!(
    "(?:help(?:ing)? (?:but|myself|it$|it that|feeling|thinking|wondering|noticing|smiling|laughing|wishing)|tell you how (?:much|happy|excited|grateful|many|often|long)|",
    "tell (?:if|whether|which|what|the difference|from|them apart)|mak(?:e|ing) (?:it\\b|up|out|sense|sure|the|any (?:sense|difference)|a (?:decision|mistake|living))|do (?:without|it alone|this alone|this anymore|it anymore|anything)|",
    "giv(?:e|ing) (?:up|you up|enough)|talk right now|say (?:enough|if|whether|for (?:sure|certain)|how (?:much|many|long)|i|no|which|what|when|exactly)|show my face|accept (?:that|the)|support myself|",
    "describ(?:e|ing) (?:how (?:much|happy)|the feeling)|explain (?:it but|why i|how (?:much|happy))|answer the phone|name (?:one|a single)|see|build on|work (?:on an empty|without)|plan (?:for|ahead)|cover (?:them all|everything|all|every)|list (?:them all|everything|all|every)|",
    "(?:recommend|stress|emphasi[sz]e|suggest|praise|advise|support|endorse)[a-z]*\\b.*\\b(?:enough|highly|strongly)\\b|recommend(?:ing)? (?:it|this (?:book|film|movie|place)|them|him|her|using|the|frying|a |an )|",
    "discuss(?:ing)? .* with (?:my|his|her)|carry (?:on|all|it)|make it|handle|hand[a-z]* (?:over )?(?:in|out of)|send (?:e ?mails?|messages|files|you (?:a|an) (?:e ?mail|message|file))|speak (?:french|german|spanish|for)|play (?:the (?:piano|guitar)))",
);

/// After an apology: not to refuse, to know, to find or to be able to come is no refusal; nor is a mistake of its own.
const NO_OBJECTION: &str = concat!(
    "i (?:cannot|will not|am (?:[a-z]+ly )*(?:not able|unable) to) (?:[a-z]+ly )?(?:refuse|decline)\\b|",
    "(?:i (?:cannot|will not|am (?:[a-z]+ly )*(?:not able|unable)(?: to)?|must|can only|do not have access)(?: [a-z]+ly)? (?:to )?(?:believe|find|see|locate|determine|hear|wait|remember|recall|think|imagine|stress|emphasi[sz]e|guarantee|verify|confirm|predict|afford|understand|figure|thank|express|deny|wish|make it|attend|come|go|agree|have|open|access|read|join|be there|confess|admit|say|be|misread|stay|meet|reply|pay|move|help but|tell (?:if|which|what|whether))\\b|",
    "i am (?:just )?an? [a-z]+ (?:student|fan|person)|(?:your|this|that|the) (?:[a-z]+ )?(?:question|request|topic|subject|task|thing|query|information|prompt|content|material|act|action)s? (?:is|was|are) (?:un|not (?:clear|right|correct|what)|(?:too|a bit|very|quite|somewhat) |missing|incomplete|ambiguous|wrong|incorrect|out of date))",
);

/// After what is wrong: a definition, an explanation, a disclaimer.
const NO_WRONG: &str = r" (?:in which|where|because|that (?:involves|occurs|consists)|when|defined|advice|counsel|representation|tender|or (?:medical|financial|tax|professional)|name|characters?|argument|move|instruction|memory|state|syntax|operation|input|value|type|format|opcode|access|reflective)\b";
