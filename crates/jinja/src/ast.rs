//! The syntax tree of a template.

use std::sync::Arc;

/// A name in the source.
pub(crate) type Name = Arc<str>;

/// Statements, in order.
pub(crate) type Body = Vec<Stmt>;

/// A statement and the line where it begins.
#[derive(Debug)]
pub(crate) struct Stmt {
    pub(crate) line: u32,
    pub(crate) kind: StmtKind,
}

#[derive(Debug)]
pub(crate) enum StmtKind {
    /// Text between the tags.
    Data(Arc<str>),
    Print(Expr),
    For(Arc<For>),
    /// Conditions with their bodies, and the `else`.
    If(Vec<(Expr, Body)>, Body),
    Set(Target, Expr),
    /// `{% set x | filter %}...{% endset %}`: the filters, outermost last.
    SetBlock(Target, Vec<FilterCall>, Body),
    With(Vec<(Target, Expr)>, Body),
    Macro(Arc<MacroDef>),
    /// `{% call %}`: the expression, and its body as a macro.
    Call(Expr, Arc<MacroDef>),
    Filter(Vec<FilterCall>, Body),
    /// `{% block %}` without inheritance, and `{% generation %}`: a scope.
    Scope(Body),
    Break,
    Continue,
}

#[derive(Debug)]
pub(crate) struct For {
    pub(crate) target: Target,
    pub(crate) iter: Expr,
    pub(crate) condition: Option<Expr>,
    pub(crate) recursive: bool,
    pub(crate) body: Body,
    pub(crate) otherwise: Body,
}

#[derive(Debug)]
pub(crate) enum Target {
    Name(Name),
    /// `namespace.attribute`.
    Attribute(Name, Name),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub(crate) struct MacroDef {
    pub(crate) name: Name,
    /// Parameters and their defaults.
    pub(crate) parameters: Vec<(Name, Option<Expr>)>,
    pub(crate) body: Body,
    /// True if the body reads `varargs`, `kwargs` or `caller`; otherwise extra arguments are refused.
    pub(crate) reads_varargs: bool,
    pub(crate) reads_kwargs: bool,
    pub(crate) reads_caller: bool,
}

#[derive(Debug)]
pub(crate) struct FilterCall {
    pub(crate) name: Name,
    pub(crate) args: Args,
}

/// Arguments of a call.
#[derive(Debug, Default)]
pub(crate) struct Args {
    pub(crate) positional: Vec<Expr>,
    pub(crate) keyword: Vec<(Name, Expr)>,
    pub(crate) star: Option<Box<Expr>>,
    pub(crate) double_star: Option<Box<Expr>>,
}

#[derive(Debug)]
pub(crate) enum Expr {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<str>),
    Name(Name),
    Tuple(Vec<Expr>),
    List(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    /// Condition, value, other value.
    Conditional(Box<Expr>, Box<Expr>, Option<Box<Expr>>),
    Or(Box<Expr>, Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Not(Box<Expr>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    Binary(Operator, Box<Expr>, Box<Expr>),
    Concat(Vec<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    Attribute(Box<Expr>, Name),
    Item(Box<Expr>, Box<Expr>),
    Slice(Box<[Option<Expr>; 3]>),
    Call(Box<Expr>, Box<Args>),
    Filter(Box<Expr>, Box<FilterCall>),
    Test(Box<Expr>, Box<FilterCall>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}
